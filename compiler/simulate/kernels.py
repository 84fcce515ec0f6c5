"""What a device's own kernels allocate: attention, and bitsandbytes' optimizer states.

On CUDA attention keeps no scores: its output and a log-sum-exp per row for the backward pass,
which adds an fp32 accumulator of the query's gradient and a row sum (FlashAttention-2, Dao, 2023,
arXiv 2307.08691; PyTorch's flash and memory-efficient kernels). A boolean mask becomes one in the
arithmetic's type, once per attention, and is kept too.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from compiler.graph import ATEN

ATTENTION = ATEN.scaled_dot_product_attention.default
MINIMUM_8BIT_SIZE = 4096
STATE_BLOCK = 256


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        row_sums = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, output, row_sums)
        return output

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_output: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        query, key, value, _, _, row_sums = ctx.saved_tensors
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        workspace = [torch.empty_like(row_sums)]
        if query.dtype != torch.float32:
            workspace.append(torch.empty_like(query, dtype=torch.float32))
        return (*gradients, None)


def gpu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002  aten's order of arguments
    **_: object,
) -> torch.Tensor:
    """Allocates what attention on CUDA does; query [batch, heads, tokens, head_dim]."""
    output: torch.Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, _additive(mask, query)
    )
    return output


def cpu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002  aten's order of arguments
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """The kernel that attention on a CPU dispatches to, named, since meta tensors have none."""
    output: torch.Tensor = ATEN._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout, is_causal, attn_mask=_additive(mask, query), scale=scale
    )[0]
    return output


def _additive(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype)


def use_attention(module: nn.Module, kernel: Callable[..., torch.Tensor]) -> None:
    """Replace the attentions of every graph inside the module."""
    for inner in module.modules():
        if isinstance(inner, torch.fx.GraphModule):
            for node in inner.graph.nodes:
                if node.target is ATTENTION:
                    node.target = kernel
            inner.recompile()


class Stateful(torch.optim.Optimizer):
    """Allocates an optimizer's states and computes nothing: the fused kernels do both in place."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        states: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    ) -> None:
        super().__init__(groups, {"lr": 0.0})
        self._states = states

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ANN401
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter] = self._states(parameter)


def adamw_states(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """torch's fused AdamW: its step counter is a tensor too."""
    return {
        "step": parameter.new_zeros((), dtype=torch.float32),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def adamw8bit_states(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """bitsandbytes: bytes with an fp32 maximum per 256 of them, fp32 for small tensors."""
    if parameter.numel() < MINIMUM_8BIT_SIZE:
        return {name: torch.zeros_like(parameter) for name in ("state1", "state2")}
    blocks = -(-parameter.numel() // STATE_BLOCK)
    return {
        "state1": torch.zeros_like(parameter, dtype=torch.uint8),
        "state2": torch.zeros_like(parameter, dtype=torch.uint8),
        "absmax1": parameter.new_zeros(blocks, dtype=torch.float32),
        "absmax2": parameter.new_zeros(blocks, dtype=torch.float32),
    }
