"""The one data file beside model.onnx: every weight, one after the other, 64-byte aligned."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from compiler.manifest import StoredArray

ALIGNMENT_BYTES = 64
TYPES = {
    torch.float32: ("float32", ir.DataType.FLOAT),
    torch.bfloat16: ("bfloat16", ir.DataType.BFLOAT16),
    torch.uint8: ("uint8", ir.DataType.UINT8),
}
"""Torch's type: the manifest's word for it and ONNX's."""


def write_external_data(
    values: Iterable[tuple[ir.Value, torch.Tensor]], path: Path
) -> dict[str, StoredArray]:
    """Streams each tensor into the file and points its initializer there; by initializer name."""
    stored: dict[str, StoredArray] = {}
    with path.open("wb") as file:
        for value, tensor in values:
            array = _append(file, tensor, path.name)
            stored[str(value.name)] = array
            value.shape = ir.Shape(array.shape)
            value.dtype = TYPES[tensor.dtype][1]
            value.const_value = ir.ExternalTensor(
                location=path.name,
                offset=array.offset_bytes,
                length=array.length_bytes,
                dtype=TYPES[tensor.dtype][1],
                shape=value.shape,
                name=str(value.name),
                base_dir=path.parent,
            )
    return stored


def _append(file: BinaryIO, tensor: torch.Tensor, name: str) -> StoredArray:
    file.write(b"\0" * (-file.tell() % ALIGNMENT_BYTES))
    offset, data = file.tell(), _little_endian(tensor)
    file.write(data.data)
    return StoredArray.model_validate(
        {
            "file": name,
            "offset_bytes": offset,
            "length_bytes": data.nbytes,
            "dtype": TYPES[tensor.dtype][0],
            "shape": tuple(tensor.shape),
        }
    )


def _little_endian(tensor: torch.Tensor) -> npt.NDArray[Any]:
    flat = tensor.detach().cpu().contiguous().view(-1)
    array = flat.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else flat.numpy()
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
