"""y = g * (W (l * x)) + e * (B (d * (A x))) + c + bias, all but W and bias by batch row.

This module defines the op ai.paretune::QuantLowRankMatMul: `reference` in torch, and its ONNX
schema. The kernels are C++ (kernels/); `library_path` finds the library they are built into.

Precision "exact" is float32 arithmetic. Precision "fast" is for 4-bit weights and rounds twice:
activations as `round_activations` does, codebook entries as `integer_codebook` does; the products
are then exact integers within a block and float32 between blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch

from compiler.engine import library_path
from compiler.quantized import BLOCK_SIZE, QuantizedWeight, dequantize
from compiler.row import LoweredSite
from planner.errors import IncompatibleError

__all__ = ["DOMAIN", "OP", "integer_codebook", "library_path", "reference", "register_schema"]

OP = "QuantLowRankMatMul"
DOMAIN = "ai.paretune"

ACTIVATION_BLOCK = 64
ACTIVATION_LEVELS = 127
OUTLIER_RANGE = 128
SMALLEST_RANGE = 1e-30
"""A block whose range is smaller counts as zero: the reciprocal of its scale would overflow."""

Precision = Literal["exact", "fast"]
Weight = torch.Tensor | QuantizedWeight
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class IntegerCodebook:
    """Codebook entry i as step * table[i] + offset; table is int8 [16]."""

    table: npt.NDArray[np.int8]
    step: np.float32
    offset: np.float32

    def values(self) -> Floats:
        return self.step * self.table.astype(np.float32) + self.offset


def reference(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None = None,
    updates: Sequence[LoweredSite | None] = (),
    *,
    precision: Precision = "exact",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """y [batch, ..., out] of x [batch, ..., in]; updates has one entry per batch row, or none.

    The matrix products run in `dtype`; the roundings of "fast" do not depend on it.
    """
    if updates and len(updates) != len(x):
        raise IncompatibleError(f"{len(x)} batch rows have {len(updates)} updates")
    dense = _dense_weight(weight, precision).to(dtype)
    if updates:
        rows = zip(x, updates, strict=True)
        y = torch.stack(
            [_updated_row(row, dense, update or LoweredSite(), precision) for row, update in rows]
        )
    else:
        y = _base_product(x, dense, None, precision)
    return y if bias is None else y + bias.to(dtype)


def round_activations(x: torch.Tensor) -> torch.Tensor:
    """x [..., in] as fast mode sees it: blocks of 64 inputs, each scale * integer, float32.

    The scale serves the block's second largest magnitude, in 127 levels; the largest entry may
    use up to 128 times that range (the kernel gives it a second int8 digit). One outlier would
    otherwise cost the 63 others their resolution.
    """
    blocks = _activation_blocks(x.float())
    magnitude = blocks.abs()
    # topk would drop a NaN, amax carries it to the scale and so to the output.
    largest = magnitude.amax(dim=-1, keepdim=True)
    second = magnitude.topk(2, dim=-1).values[..., 1:]
    span = torch.maximum(second, largest * (1 / OUTLIER_RANGE))
    scale = span * torch.tensor(1 / ACTIVATION_LEVELS, dtype=torch.float32)
    whole = torch.round(blocks * (ACTIVATION_LEVELS / span))
    rounded = torch.where(span < SMALLEST_RANGE, 0.0, whole * scale)
    rounded = torch.where(span.isfinite(), rounded, torch.nan)
    return rounded.flatten(-2)[..., : x.shape[-1]]


def integer_codebook(codebook: Floats) -> IntegerCodebook:
    """The int8 table, step and offset closest to the codebook in the least-squares sense.

    A grid over the step (128 to 255 integers across the codebook's range) and over the phase of
    the rounding; at each point step and offset are refitted.
    """
    return _integer_codebook(tuple(float(value) for value in codebook))


def register_schema() -> None:
    """Makes the op known to onnx.checker and shape inference; any number of calls."""
    if not onnx.defs.has(OP, DOMAIN):
        onnx.defs.register_schema(_schema())


def _dense_weight(weight: Weight, precision: Precision) -> torch.Tensor:
    if isinstance(weight, torch.Tensor):
        if precision == "fast":
            raise IncompatibleError(f"precision fast needs a 4-bit weight, not {weight.dtype}")
        return weight
    if precision == "fast":
        weight = replace(weight, codebook=integer_codebook(weight.codebook).values())
    return torch.from_numpy(dequantize(weight))


def _base_product(
    x: torch.Tensor, dense: torch.Tensor, input_scale: Floats | None, precision: Precision
) -> torch.Tensor:
    if input_scale is not None:
        x = x * torch.from_numpy(input_scale)
    if precision == "fast":
        x = round_activations(x)
    return x.to(dense.dtype) @ dense.T


def _updated_row(
    x: torch.Tensor, dense: torch.Tensor, update: LoweredSite, precision: Precision
) -> torch.Tensor:
    def part(array: Floats) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(dense.dtype)

    y = _base_product(x, dense, update.input_scale, precision)
    if update.output_scale is not None:
        y = y * part(update.output_scale)
    if update.a is not None and update.b is not None:
        latent = x.to(dense.dtype) @ part(update.a).T
        if update.latent_scale is not None:
            latent = latent * part(update.latent_scale)
        pair = latent @ part(update.b).T
        y = y + (pair if update.pair_scale is None else pair * part(update.pair_scale))
    return y if update.output_shift is None else y + part(update.output_shift)


def _activation_blocks(x: torch.Tensor) -> torch.Tensor:
    padding = -x.shape[-1] % ACTIVATION_BLOCK
    return torch.nn.functional.pad(x, (0, padding)).view(*x.shape[:-1], -1, ACTIVATION_BLOCK)


@lru_cache(maxsize=16)
def _integer_codebook(codebook: tuple[float, ...]) -> IntegerCodebook:
    values = np.asarray(codebook, np.float64)
    least, spread = values.min(), values.max() - values.min()
    if not spread > 0:
        return IntegerCodebook(np.zeros(16, np.int8), np.float32(0), np.float32(least))
    grid = [(255, 0.0)] + [(n, phase / 16) for n in range(254, 127, -1) for phase in range(16)]
    steps, phases = np.asarray(grid, np.float64).T
    scaled = (values - least) * (steps / spread)[:, None]
    table = np.floor(scaled + phases[:, None] + 0.5) - 128.0
    step, offset = _fit_lines(table, values)
    residual = values - (step[:, None] * table + offset[:, None])
    best = int(np.argmin(_sum_in_order(residual * residual)))
    return IntegerCodebook(
        table[best].astype(np.int8), np.float32(step[best]), np.float32(offset[best])
    )


def _fit_lines(
    table: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Least squares of values on each row of table, summed as the kernel sums."""
    sum_q, sum_qq = _sum_in_order(table), _sum_in_order(table * table)
    sum_v, sum_qv = _sum_in_order(values[None, :]), _sum_in_order(table * values)
    step = (16.0 * sum_qv - sum_q * sum_v) / (16.0 * sum_qq - sum_q * sum_q)
    return step, (sum_v - step * sum_q) / 16.0


def _sum_in_order(terms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum over the last axis from left to right: numpy's own order is its own business."""
    return np.add.accumulate(terms, axis=-1)[..., -1]


def _schema() -> onnx.defs.OpSchema:
    parameter = onnx.defs.OpSchema.FormalParameter
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    attribute, value = onnx.defs.OpSchema.Attribute, onnx.AttributeProto
    integer = onnx.defs.OpSchema.AttrType.INT
    floats = "tensor(float)"
    return onnx.defs.OpSchema(
        OP,
        DOMAIN,
        1,
        doc=__doc__ or "",
        inputs=[
            parameter("x", floats, "[batch, ..., in]"),
            parameter("weight", "W", "[out, in], or 4-bit codes, two per byte"),
            parameter("absmax", "S", "one scale per block", param_option=optional),
            parameter("codebook", floats, "[16]", param_option=optional),
            parameter("nested_absmax", floats, param_option=optional),
            parameter("nested_codebook", floats, "[256]", param_option=optional),
            parameter("nested_offset", floats, "[1]", param_option=optional),
            parameter("bias", floats, "[out]", param_option=optional),
            parameter("bank", "tensor(uint8)", "tenants' rows", param_option=optional),
            parameter("slot", "tensor(int64)", "[batch]", param_option=optional),
        ],
        outputs=[parameter("y", floats, "[batch, ..., out]")],
        type_constraints=[
            ("W", [floats, "tensor(bfloat16)", "tensor(uint16)", "tensor(uint8)"], "weight"),
            ("S", ["tensor(uint8)", floats], "block scales"),
        ],
        attributes=[
            attribute("out_features", integer, "N", required=True),
            attribute("in_features", integer, "K", required=True),
            attribute(
                "block_size",
                value(name="block_size", type=value.INT, i=BLOCK_SIZE),
                "weights that share a scale",
            ),
            attribute(
                "precision",
                value(name="precision", type=value.STRING, s=b"exact"),
                "exact or fast",
            ),
            attribute(
                "site",
                value(name="site", type=value.INT, i=-1),
                "this op's index in a slot's directory; -1 without a bank",
            ),
        ],
    )
