"""The frozen weights of an artifact, read where its manifest says they lie; no graph is parsed."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compiler.manifest import Manifest, SiteRecord, StoredArray
from compiler.quantized import dequantize, from_arrays
from planner.errors import IncompatibleError
from planner.method import Target

Floats = npt.NDArray[np.float32]

PARTS = ("codes", "absmax", "codebook", "nested_absmax", "nested_codebook", "offset")
"""The names that a quantised weight's initializers have after "<site>.weight."."""

_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
    "uint8": np.dtype("u1"),
}


def base_weight(folder: Path, manifest: Manifest, site: str) -> Floats:
    """The site's frozen weight, [out_features, in_features]."""
    record = _site(manifest, site)
    shape = (record.out_features, record.in_features)
    parts = {name: read_array(folder, stored) for name, stored in record.weight.items()}
    weight = parts["weight"] if "weight" in parts else dequantize(from_arrays(parts, shape))
    if weight.shape != shape:
        raise IncompatibleError(
            f"the weight of '{site}' has shape {list(weight.shape)}; its site says {list(shape)}"
        )
    return weight.astype(np.float32, copy=False)


def base_bias(folder: Path, manifest: Manifest, site: str) -> Floats | None:
    """The site's frozen bias, [out_features], if it has one."""
    stored = _site(manifest, site).bias
    return None if stored is None else read_array(folder, stored).astype(np.float32, copy=False)


def read_array(folder: Path, stored: StoredArray) -> npt.NDArray[Any]:
    """The stored values, bfloat16 widened to float32; sizes are checked before any allocation."""
    dtype = _TYPES[stored.dtype]
    needed = math.prod(stored.shape) * dtype.itemsize
    path = folder / stored.file
    end = stored.offset_bytes + stored.length_bytes
    if needed != stored.length_bytes or end > path.stat().st_size:
        raise IncompatibleError(
            f"'{stored.file}' cannot hold {list(stored.shape)} {stored.dtype} in bytes "
            f"{stored.offset_bytes} to {end}"
        )
    with path.open("rb") as stream:
        stream.seek(stored.offset_bytes)
        values = np.fromfile(stream, dtype, math.prod(stored.shape)).reshape(stored.shape)
    if stored.dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values


def site_record(target: Target, stored: Mapping[str, StoredArray]) -> SiteRecord:
    """The record of a site, from where each initializer of the exported graph lies, by name."""
    name = f"{target.name}.weight"
    parts = {"weight": stored[name]} if name in stored else {}
    parts |= {part: stored[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in stored}
    if not parts:
        raise IncompatibleError(f"the graph has no initializer '{name}' or '{name}.codes'")
    return SiteRecord(
        name=target.name,
        role=target.role,
        out_features=target.out_features,
        in_features=target.in_features,
        weight=parts,
        bias=stored.get(f"{target.name}.bias"),
    )


def _site(manifest: Manifest, name: str) -> SiteRecord:
    for record in manifest.sites:
        if record.name == name:
            return record
    raise IncompatibleError(f"the artifact has no site '{name}'")
