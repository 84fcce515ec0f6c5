"""Summed cross entropy, and a fused form of it that never holds the logits of a whole batch.

With p = softmax(h W^T): loss = -sum(log p[label]), grad h = (p - onehot) W, both in one visit to
each chunk of tokens. Tokens whose label is IGNORED leave before the product.
"""

import math

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from compiler.data import IGNORED

CHUNK_ELEMENTS = 2**25
"""Logits held at once. Smaller chunks leave the products too thin, larger ones only cost memory."""


def causal_lm_loss(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """(summed loss, target tokens) of hidden [batch, tokens, H] under head [vocabulary, H].

    Position t predicts label t + 1.
    """
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return linear_cross_entropy(hidden.flatten(0, 1), head, targets.flatten())


def linear_cross_entropy(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    *,
    chunk_tokens: int | None = None,
) -> tuple[torch.Tensor, int]:
    """(summed loss fp32 [], labelled tokens) of hidden [tokens, H], head [V, H], labels [tokens].

    The head's gradient is computed only if it requires one. Products run in the dtype of `hidden`;
    the softmax and the sums are fp32.
    """
    kept = (labels != IGNORED).nonzero().flatten()
    limit = chunk_tokens or max(1, CHUNK_ELEMENTS // head.shape[0])
    # Chunks of one size: a thin last one would cost as much as a full one.
    chunk = math.ceil(len(kept) / max(1, math.ceil(len(kept) / limit)))
    loss: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, head, labels[kept], kept, chunk, torch.is_grad_enabled()
    )
    return loss, kept.numel()


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(summed loss fp32 [], labelled rows) of logits [batch, classes], labels [batch]."""
    loss = torch.nn.functional.cross_entropy(
        logits.float(), labels, ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((labels != IGNORED).sum())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        kept: torch.Tensor,
        chunk: int,
        differentiable: bool,  # noqa: FBT001  autograd passes arguments by position
    ) -> torch.Tensor:
        needs_hidden, needs_head = (
            differentiable and tensor.requires_grad for tensor in (hidden, head)
        )
        rows = hidden[kept]
        total = rows.new_zeros((), dtype=torch.float32)
        grad_rows = torch.empty_like(rows) if needs_hidden else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if needs_head else None
        workspace = _Workspace(rows, head, chunk)
        for start in range(0, len(rows), max(1, chunk)):
            part = slice(start, start + chunk)
            total += workspace.loss(rows[part], head, targets[part])
            if grad_rows is not None or grad_head is not None:
                grad_logits = workspace.grad_logits(targets[part])
                if grad_rows is not None:
                    torch.mm(grad_logits, head, out=grad_rows[part])
                if grad_head is not None:
                    _accumulate(grad_head, grad_logits.T, rows[part])
        ctx.save_for_backward(kept, grad_rows, grad_head)  # type: ignore[arg-type]
        ctx.tokens, ctx.head_dtype = len(hidden), head.dtype  # type: ignore[attr-defined]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):  # type: ignore[no-untyped-def]
        kept, grad_rows, grad_head = ctx.saved_tensors
        grad_hidden = None
        if grad_rows is not None:
            grad_hidden = grad_rows.new_zeros(ctx.tokens, grad_rows.shape[1])
            grad_hidden.index_copy_(0, kept, grad_rows * grad_loss.to(grad_rows.dtype))
        if grad_head is not None:
            grad_head = (grad_head * grad_loss).to(ctx.head_dtype)
        return grad_hidden, grad_head, None, None, None, None


class _Workspace:
    """The buffers of one chunk, reused by the next: fresh ones cost more than the arithmetic."""

    def __init__(self, rows: torch.Tensor, head: torch.Tensor, chunk: int) -> None:
        self.product = rows.new_empty(chunk, head.shape[0])
        self.fp32 = self.product.to(torch.float32)

    def loss(self, rows: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Summed loss of rows [tokens, H]; leaves their softmax in `fp32`."""
        product, logits = self.product[: len(rows)], self.fp32[: len(rows)]
        torch.mm(rows, head.T, out=product)
        if logits.dtype != product.dtype:
            logits.copy_(product)
        target_logit = logits.gather(1, targets[:, None])
        largest, place = logits.max(1, keepdim=True)
        # In place: the kernels have read a row before they write it.
        probabilities = torch.softmax(logits, 1, out=logits)
        # log sum exp through the largest logit, whose probability cannot underflow.
        return (largest - probabilities.gather(1, place).log() - target_logit).sum()

    def grad_logits(self, targets: torch.Tensor) -> torch.Tensor:
        """softmax - onehot, in the products' dtype."""
        product, p = self.product[: len(targets)], self.fp32[: len(targets)]
        p[torch.arange(len(targets), device=p.device), targets] -= 1.0
        return p if product.dtype == p.dtype else product.copy_(p)


def _accumulate(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left right, summed in fp32 whatever the operands' dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
