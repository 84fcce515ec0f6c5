"""A tenant's row: a directory of its sites, then their parts, in one contiguous run of bytes.

The directory is int64 [sites, 12]: rank, A offset, A stride, B offset, B stride, then the offsets
of output scale, input scale, output shift, latent scale and pair scale, and two zeros. Offsets are
bytes, here from the start of the row, and 0 is an absent part; strides are in floats. A is
[rank, in] and B is stored transposed, [rank, out]. Every part is float32, little endian and begins
at a multiple of 64 bytes. An A or B offset of -1 - i is the i-th shared block, by sorted key: what
several tenants use lies outside the row.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from planner.errors import IncompatibleError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

ALIGNMENT = 64
COLUMNS = 12
RANK, A, A_STRIDE, B, B_STRIDE = range(5)
VECTORS = {
    "output_scale": (5, "out"),
    "input_scale": (6, "in"),
    "output_shift": (7, "out"),
    "latent_scale": (8, "rank"),
    "pair_scale": (9, "out"),
}
"""Column and length of each vector part."""
OFFSETS = (A, B, *(column for column, _ in VECTORS.values()))

SHARED_PREFIX = "shared."


@dataclass(frozen=True)
class Site:
    """A linear that tenants may adapt; its index in the model's sequence is its directory row."""

    name: str
    out_features: int
    in_features: int


@dataclass(frozen=True, eq=False)
class LoweredSite:
    """y = g * (W (l * x)) + e * (B (d * (A x))) + c + bias; None is absent and costs nothing.

    a [rank, in], b [out, rank], output_scale g [out], input_scale l [in], output_shift c [out],
    latent_scale d [rank], pair_scale e [out]. With `shared_a` (`shared_b`), a (b) is the leading
    columns (rows) of a block that all tenants with that key share.
    """

    a: Floats | None = None
    b: Floats | None = None
    output_scale: Floats | None = None
    input_scale: Floats | None = None
    output_shift: Floats | None = None
    latent_scale: Floats | None = None
    pair_scale: Floats | None = None
    shared_a: str | None = None
    shared_b: str | None = None

    @property
    def rank(self) -> int:
        return 0 if self.a is None else int(self.a.shape[0])


@dataclass(frozen=True, eq=False)
class Row:
    """The bytes of a row and the shared blocks, [rank, widest in or out], it refers to."""

    data: Bytes
    shared: Mapping[str, Floats] = field(default_factory=dict)


def aligned(count: int) -> int:
    """The next multiple of 64."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def directory_bytes(sites: Sequence[Site]) -> int:
    return aligned(len(sites) * COLUMNS * 8)


def pack_row(sites: Sequence[Site], lowered: Mapping[str, LoweredSite]) -> Row:
    """Raises IncompatibleError for an unknown site or a part of the wrong shape."""
    _check_sites(sites, lowered)
    shared = _shared_blocks(lowered.values())
    index = {key: -1 - position for position, key in enumerate(sorted(shared))}
    directory = np.zeros((len(sites), COLUMNS), np.int64)
    parts: list[tuple[int, Floats]] = []
    end = directory_bytes(sites)
    for row, site in zip(directory, sites, strict=True):
        for column, part in _parts(lowered.get(site.name, LoweredSite()), row, index, shared):
            row[column] = end
            parts.append((end, part))
            end += aligned(part.nbytes)
    data = np.zeros(end, np.uint8)
    data[: directory.nbytes] = directory.view(np.uint8).reshape(-1)
    for offset, part in parts:
        data[offset : offset + part.nbytes].view(np.float32).reshape(part.shape)[...] = part
    return Row(data, shared)


def unpack_row(sites: Sequence[Site], row: Row) -> dict[str, LoweredSite]:
    """The sites a row adapts, as views; raises IncompatibleError when the row is malformed."""
    check_row(sites, row)
    blocks = [row.shared[key] for key in sorted(row.shared)]
    names = sorted(row.shared)
    found = {}
    for entry, site in zip(directory_of(row.data, len(sites)), sites, strict=True):
        if entry.any():
            found[site.name] = _site_parts(row.data, entry, site, names, blocks)
    return found


def row_tensors(row: Row) -> dict[str, npt.NDArray[np.generic]]:
    """What a row file stores, by tensor name."""
    return {"row": row.data} | {SHARED_PREFIX + key: block for key, block in row.shared.items()}


def row_from_tensors(tensors: Mapping[str, npt.NDArray[np.generic]]) -> Row:
    """The inverse of `row_tensors`; `check_row` is the caller's or the bank's to run."""
    shared = {
        name.removeprefix(SHARED_PREFIX): block.astype(np.float32, copy=False)
        for name, block in tensors.items()
        if name.startswith(SHARED_PREFIX)
    }
    if len(shared) + 1 != len(tensors) or "row" not in tensors:
        raise IncompatibleError(f"a row file holds 'row' and shared blocks, not {sorted(tensors)}")
    return Row(tensors["row"].astype(np.uint8, copy=False), shared)


def directory_of(data: Bytes, site_count: int, start: int = 0) -> Integers:
    """The directory at that byte, as a view."""
    end = start + site_count * COLUMNS * 8
    return data[start:end].view(np.int64).reshape(site_count, COLUMNS)


def check_row(sites: Sequence[Site], row: Row) -> None:
    """Raises IncompatibleError unless every part lies inside the row, aligned, and is its size."""
    if row.data.size < directory_bytes(sites) or row.data.size % ALIGNMENT:
        raise IncompatibleError(f"a row of {row.data.size} bytes cannot hold {len(sites)} sites")
    keys = sorted(row.shared)
    for entry, site in zip(directory_of(row.data, len(sites)), sites, strict=True):
        for column, offset, rows, stride, width in _extents(entry, site):
            if offset < 0 and column in (A, B):
                _check_shared(row, keys, site, (offset, rows, stride, width))
                continue
            length = 4 * ((rows - 1) * stride + width)
            inside = directory_bytes(sites) <= offset <= row.data.size - length
            if offset % ALIGNMENT or not inside or stride < width:
                raise IncompatibleError(
                    f"the row's entry for '{site.name}' points outside the row, at {offset}"
                )


def _check_shared(
    row: Row, keys: Sequence[str], site: Site, extent: tuple[int, int, int, int]
) -> None:
    offset, rows, stride, width = extent
    index = -1 - offset
    if index >= len(keys):
        raise IncompatibleError(f"'{site.name}' refers to shared block {index} of {len(keys)}")
    shape = row.shared[keys[index]].shape
    if len(shape) != 2 or shape[0] < rows or shape[1] != stride or stride < width:
        raise IncompatibleError(
            f"'{site.name}' needs [{rows}, {width}] of the shared block '{keys[index]}' {shape}"
        )


def _extents(entry: Integers, site: Site) -> Iterator[tuple[int, int, int, int, int]]:
    """Column, offset, rows, stride and row width of each part present."""
    rank = int(entry[RANK])
    if rank < 0 or (rank > 0) != bool(entry[A]) or (rank > 0) != bool(entry[B]):
        raise IncompatibleError(f"the row's entry for '{site.name}' has rank {rank} and no pair")
    lengths = {"out": site.out_features, "in": site.in_features, "rank": rank}
    if rank:
        yield A, int(entry[A]), rank, int(entry[A_STRIDE]), site.in_features
        yield B, int(entry[B]), rank, int(entry[B_STRIDE]), site.out_features
    for column, dimension in VECTORS.values():
        if entry[column]:
            yield column, int(entry[column]), 1, lengths[dimension], lengths[dimension]


def _check_sites(sites: Sequence[Site], lowered: Mapping[str, LoweredSite]) -> None:
    known = {site.name: site for site in sites}
    for name, parts in lowered.items():
        if name not in known:
            raise IncompatibleError(
                f"no site is named '{name}'; the sites are {', '.join(known) or 'none'}"
            )
        lengths = {
            "out": known[name].out_features,
            "in": known[name].in_features,
            "rank": parts.rank,
        }
        _check_shape(name, "a", parts.a, (lengths["rank"], lengths["in"]))
        _check_shape(name, "b", parts.b, (lengths["out"], lengths["rank"]))
        for vector, (_, dimension) in VECTORS.items():
            _check_shape(name, vector, getattr(parts, vector), (lengths[dimension],))
        if (parts.a is None) != (parts.b is None):
            raise IncompatibleError(f"'{name}' has one half of a low-rank pair")


def _check_shape(site: str, part: str, value: Floats | None, shape: tuple[int, ...]) -> None:
    if value is not None and value.shape != shape:
        raise IncompatibleError(
            f"{part} of '{site}' has shape {list(value.shape)}, but {list(shape)} is needed"
        )


def _shared_blocks(lowered: Iterable[LoweredSite]) -> dict[str, Floats]:
    """Per key the widest use, in the stored orientation; every other use is its leading columns."""
    blocks: dict[str, Floats] = {}
    for parts in lowered:
        for key, block in ((parts.shared_a, parts.a), (parts.shared_b, parts.b)):
            if key is None or block is None:
                continue
            stored = block if key == parts.shared_a else block.T
            if key not in blocks or blocks[key].shape[1] < stored.shape[1]:
                blocks[key] = np.ascontiguousarray(stored, np.float32)
    return blocks


def _parts(
    parts: LoweredSite, entry: Integers, index: Mapping[str, int], shared: Mapping[str, Floats]
) -> Iterator[tuple[int, Floats]]:
    """Fills rank, strides and shared references of the entry; yields the parts it must hold."""
    if parts.a is not None and parts.b is not None and parts.rank:
        entry[RANK] = parts.rank
        pairs = ((A, parts.a, parts.shared_a), (B, parts.b.T, parts.shared_b))
        for column, stored, key in pairs:
            if key is None:
                entry[column + 1] = stored.shape[1]
                yield column, stored
            else:
                entry[column], entry[column + 1] = index[key], shared[key].shape[1]
    for vector, (column, _) in VECTORS.items():
        value: Floats | None = getattr(parts, vector)
        if value is not None and value.size:
            yield column, value


def _site_parts(
    data: Bytes, entry: Integers, site: Site, names: Sequence[str], blocks: Sequence[Floats]
) -> LoweredSite:
    rank = int(entry[RANK])
    lengths = {"out": site.out_features, "in": site.in_features, "rank": rank}
    vectors = {
        vector: read_block(data, int(entry[column]), 1, lengths[dimension], lengths[dimension])[0]
        for vector, (column, dimension) in VECTORS.items()
        if entry[column]
    }
    if rank == 0:
        return LoweredSite(**vectors)

    def block(column: int, width: int) -> tuple[Floats, str | None]:
        offset, stride = int(entry[column]), int(entry[column + 1])
        if offset < 0:
            return blocks[-1 - offset][:rank, :width], names[-1 - offset]
        return read_block(data, offset, rank, stride, width), None

    a, shared_a = block(A, site.in_features)
    b, shared_b = block(B, site.out_features)
    return LoweredSite(a=a, b=b.T, shared_a=shared_a, shared_b=shared_b, **vectors)


def read_block(data: Bytes, offset: int, rows: int, stride: int, width: int) -> Floats:
    """float32 [rows, width] at that byte, as a view."""
    count = (rows - 1) * stride + width
    flat = data[offset : offset + 4 * count].view(np.float32)
    return np.lib.stride_tricks.as_strided(flat, (rows, width), (4 * stride, 4))
