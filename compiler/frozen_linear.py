"""Linears over a frozen weight, dense or in 4-bit blocks, alone or with a low-rank pair.

A frozen weight travels as a tuple: `(weight,)`, or the six tensors of a quantized one. Autograd
then keeps the 4-bit codes, not the dequantised weight, between forward and backward.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

Packed = tuple[torch.Tensor, ...]
"""`(weight,)`, or `(codes, absmax, codebook, nested_absmax, nested_codebook, offset)`."""

Shape = tuple[int, int]
"""[out, in] of the weight."""

BLOCK_SIZE = 64
NESTED_BLOCK_SIZE = 256


def dequantize(packed: Packed, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """The dense weight [out, in] of a packed one, rounded to `dtype`."""
    if len(packed) == 1:
        return packed[0]
    codes, absmax, codebook, nested_absmax, nested_codebook, offset = packed
    pairs = torch.stack([codebook.repeat_interleave(16), codebook.repeat(16)], dim=1)
    values = pairs.index_select(0, codes.int()).view(-1)
    outer = nested_absmax.repeat_interleave(NESTED_BLOCK_SIZE)[: absmax.numel()]
    scales = nested_codebook[absmax.int()] * outer + offset
    count = shape[0] * shape[1]
    whole = count - count % BLOCK_SIZE
    blocks = values[:whole].view(-1, BLOCK_SIZE)
    blocks *= scales[: len(blocks), None]
    values[whole:] *= scales[-1]
    return values[:count].view(shape).to(dtype)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        bias: torch.Tensor | None,
        shape: Shape,
        *packed: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(*packed)
        ctx.shape = shape
        return torch.nn.functional.linear(x, dequantize(packed, shape, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_output: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        packed = ctx.saved_tensors
        weight = dequantize(packed, ctx.shape, grad_output.dtype)
        return (grad_output @ weight, None, None, *(None for _ in packed))


class _LowRankLinear(torch.autograd.Function):
    """y = W x + bias + b (a x), accumulated in place, so neither branch's output is kept."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        bias: torch.Tensor | None,
        shape: Shape,
        *packed: torch.Tensor,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        latent = rows @ a.T
        y = torch.nn.functional.linear(rows, dequantize(packed, shape, x.dtype), bias)
        y.addmm_(latent, b.T)
        ctx.save_for_backward(rows, latent, a, b, *packed)
        ctx.shape = shape
        return y.view(*x.shape[:-1], shape[0])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_output: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        rows, latent, a, b, *packed = ctx.saved_tensors
        grad = grad_output.reshape(-1, ctx.shape[0])
        grad_latent = grad @ b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ dequantize(tuple(packed), ctx.shape, grad.dtype)
            grad_x.addmm_(grad_latent, a)
            grad_x = grad_x.view(*grad_output.shape[:-1], -1)
        grad_a = grad_latent.T @ rows
        grad_b = grad.T @ latent
        return (grad_x, grad_a, grad_b, None, None, *(None for _ in packed))


def frozen_linear(
    x: torch.Tensor, bias: torch.Tensor | None, shape: Shape, *packed: torch.Tensor
) -> torch.Tensor:
    """W x + bias; x [..., in] -> [..., out]. Only x receives a gradient."""
    y: torch.Tensor = _FrozenLinear.apply(  # type: ignore[no-untyped-call]
        x, bias, shape, *packed
    )
    return y


def low_rank_linear(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    shape: Shape,
    *packed: torch.Tensor,
) -> torch.Tensor:
    """W x + bias + b (a x); a [rank, in], b [out, rank]. x, a and b receive gradients."""
    y: torch.Tensor = _LowRankLinear.apply(  # type: ignore[no-untyped-call]
        x, a, b, bias, shape, *packed
    )
    return y


def dense_weight(shape: Shape, dtype: torch.dtype, *packed: torch.Tensor) -> torch.Tensor:
    """The dense weight of a packed one, for updates that read it every step."""
    return dequantize(packed, shape, dtype)
