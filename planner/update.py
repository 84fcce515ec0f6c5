"""The algebra of updates: what a method does to one linear y = W x + bias.

    y = g * (W (l * x)) + e * (B (d * (A x))) + c + bias        (or y = W' x + bias)

A part is a record of tensors; absent parts cost nothing. Only tensor operators are used, so numpy
arrays, torch tensors and graph proxies all pass through, and the training graph, the merged
weight, the bank row and the parameter count are derived from the same parts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

Tensor = Any
"""A numpy array, a torch tensor or a graph proxy: whatever has `@`, `*`, `+`, `.T` and indexing."""


class LowRank(NamedTuple):
    """y += output_scale * (B (latent_scale * (A x))); a [rank, in], b [out, rank]."""

    a: Tensor
    b: Tensor
    latent_scale: Tensor | None = None
    output_scale: Tensor | None = None


class OutputScale(NamedTuple):
    """W x becomes scale * (W x); scale [out]. The bias is not scaled."""

    scale: Tensor


class InputScale(NamedTuple):
    """W x becomes W (scale * x); scale [in]. Low-rank parts see x itself."""

    scale: Tensor


class OutputShift(NamedTuple):
    """y += shift; shift [out]."""

    shift: Tensor


class Dense(NamedTuple):
    """W is replaced; weight [out, in]."""

    weight: Tensor


Part = LowRank | OutputScale | InputScale | OutputShift | Dense
Update = tuple[Part, ...]


def low_rank_output(part: LowRank, x: Tensor) -> Tensor:
    """The low-rank part's own contribution to y; x [..., in] -> [..., out]."""
    latent = x @ part.a.T
    if part.latent_scale is not None:
        latent = latent * part.latent_scale
    output = latent @ part.b.T
    return output if part.output_scale is None else output * part.output_scale


def apply(
    update: Update,
    x: Tensor,
    base: Callable[[Tensor], Tensor],
    linear: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """y without the bias; `base` computes W x, `linear(x, weight)` computes weight x."""
    base_input = x
    for part in update:
        if isinstance(part, InputScale):
            base_input = base_input * part.scale
    dense = [part.weight for part in update if isinstance(part, Dense)]
    y = linear(base_input, dense[0]) if dense else base(base_input)
    for part in update:
        if isinstance(part, OutputScale):
            y = y * part.scale
    for part in update:
        if isinstance(part, LowRank):
            y = y + low_rank_output(part, x)
        elif isinstance(part, OutputShift):
            y = y + part.shift
    return y


def fold(update: Update, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """The merged weight [out, in] and the shift [out] to add to the bias, or None."""
    for part in update:
        if isinstance(part, Dense):
            weight = part.weight
    for part in update:
        if isinstance(part, InputScale):
            weight = weight * part.scale
        elif isinstance(part, OutputScale):
            weight = part.scale[:, None] * weight
    for part in update:
        if isinstance(part, LowRank):
            weight = weight + delta(part)
    shifts = [part.shift for part in update if isinstance(part, OutputShift)]
    return weight, sum(shifts[1:], shifts[0]) if shifts else None


def delta(part: LowRank) -> Tensor:
    """The dense matrix [out, in] that a low-rank part adds to W."""
    a = part.a if part.latent_scale is None else part.latent_scale[:, None] * part.a
    b = part.b if part.output_scale is None else part.output_scale[:, None] * part.b
    return b @ a


def detached(tensor: Tensor) -> Tensor:
    """The tensor as a constant of the backward pass, where the tensor knows of one."""
    return tensor.detach() if hasattr(tensor, "detach") else tensor


def row_norm(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """||W + B A|| per row [out], without the dense product B A.

    ||w + b A||^2 = ||w||^2 + 2 (w A^T) b + b (A A^T) b, row by row (methods.md, DoRA sheet).
    """
    cross = ((weight @ a.T) * b).sum(1)
    square = ((b @ (a @ a.T)) * b).sum(1)
    return ((weight * weight).sum(1) + 2.0 * cross + square) ** 0.5
