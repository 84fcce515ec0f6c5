"""A frozen weight in 4-bit blocks: w[i] = codebook[code[i]] * scale[i // block_size], in numpy.

Blocks run over the row-major flat weight, so they straddle rows when in_features is no multiple of
the block size; the last block may be short. Two codes share a byte, the even flat index in the high
nibble. With nested statistics, scale[b] = nested_codebook[absmax[b]] * nested_absmax[b // 256]
+ offset (QLoRA, Dettmers et al., 2023, section 3: double quantisation).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod

import numpy as np
import numpy.typing as npt

from planner.errors import IncompatibleError

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

BLOCK_SIZE = 64
NESTED_BLOCK_SIZE = 256


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Codes and scales of one weight [out, in]; the nested parts are all present or all None.

    absmax is uint8 [blocks] when nested, float32 [blocks] otherwise; offset is float32 [1].
    """

    shape: tuple[int, int]
    codes: Bytes
    absmax: Bytes | Floats
    codebook: Floats
    nested_absmax: Floats | None = None
    nested_codebook: Floats | None = None
    offset: Floats | None = None
    block_size: int = BLOCK_SIZE

    @property
    def nested(self) -> bool:
        return self.nested_absmax is not None

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in arrays(self).values())


def arrays(weight: QuantizedWeight) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays that are present, by field name: what a file or an ONNX graph stores."""
    values = ((field.name, getattr(weight, field.name)) for field in fields(weight))
    return {name: value for name, value in values if isinstance(value, np.ndarray)}


def from_arrays(
    parts: Mapping[str, npt.NDArray[np.generic]],
    shape: tuple[int, int],
    block_size: int = BLOCK_SIZE,
) -> QuantizedWeight:
    """The inverse of `arrays`; raises IncompatibleError when a size does not fit the shape."""
    weight = QuantizedWeight(shape=shape, block_size=block_size, **parts)  # type: ignore[arg-type]
    count, blocks = prod(shape), _ceil(prod(shape), block_size)
    expected = {"codes": _ceil(count, 2), "absmax": blocks, "codebook": 16}
    if weight.nested:
        nested = {"nested_absmax": _ceil(blocks, NESTED_BLOCK_SIZE), "nested_codebook": 256}
        expected |= nested | {"offset": 1}
    found = {name: array.size for name, array in arrays(weight).items()}
    if found != expected:
        raise IncompatibleError(
            f"4-bit weight of shape {list(shape)} holds {found} numbers, but {expected} are needed"
        )
    return weight


def scales(weight: QuantizedWeight) -> Floats:
    """One float32 scale per block."""
    if weight.nested_absmax is None or weight.nested_codebook is None or weight.offset is None:
        return weight.absmax.astype(np.float32)
    outer = np.repeat(weight.nested_absmax, NESTED_BLOCK_SIZE)[: weight.absmax.size]
    return weight.nested_codebook[weight.absmax] * outer + weight.offset


def dequantize(weight: QuantizedWeight) -> Floats:
    """The float32 weight [out, in]."""
    count = prod(weight.shape)
    # One lookup per byte yields both values; a table of pairs is 16 times fewer numpy passes.
    pairs = np.stack([np.repeat(weight.codebook, 16), np.tile(weight.codebook, 16)], axis=1)
    values: Floats = pairs[weight.codes].reshape(-1)[:count]
    per_block = scales(weight)
    whole = count - count % weight.block_size
    blocks = values[:whole].reshape(-1, weight.block_size)
    blocks *= per_block[: len(blocks), None]
    values[whole:] *= per_block[len(blocks) :]
    return values.reshape(weight.shape)


def _ceil(count: int, size: int) -> int:
    return -(-count // size)
