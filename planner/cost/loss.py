"""Bytes of a training step's loss."""

from planner.architecture import Architecture
from planner.cost.elementwise import larger
from planner.cost.step import Step
from planner.cost.weights import FP32, QUANTISED

CHUNK_LOGITS = 2**25
"""Logits that the compiler's loss holds at once (compiler/train/loss.py), reused by every chunk."""


def loss_bytes(shape: Architecture, step: Step) -> float:
    """What the loss holds besides the activations, at its largest."""
    if not step.causal:
        return step.batch_size * step.labels * step.program.logit_bytes[step.compute]
    # The compiler's loss takes no bias of the head, and falls back on all logits.
    capped = step.element if shape.caps_logits else 0
    if step.loss == "full" or shape.biased_head:
        return step.tokens * shape.vocab * (step.program.logit_bytes[step.compute] + capped)
    copy = FP32 if step.compute != "fp32" else 0
    labelled = step.batch_size * (step.sequence_length - 1)
    chunk = _chunk_tokens(labelled, shape.vocab) * shape.vocab * (step.element + copy + capped)
    rows = 2 * labelled * shape.hidden * step.element
    if not step.trains_base:
        return chunk + rows
    # The head's gradient in fp32; in another type its own copy too, and a chunk's share to add.
    return chunk + rows + shape.vocab * shape.hidden * (FP32 + (2 * step.element if copy else 0))


def _chunk_tokens(labelled: float, vocab: int) -> float:
    """At most: compiler/train/loss.py cuts chunks of one size, which may be a little less."""
    limit = float(max(1, CHUNK_LOGITS // vocab))
    return -larger(-labelled, -limit)


def upcast_head_bytes(shape: Architecture, step: Step) -> float:
    """The copy of an fp32 head that its product reads."""
    upcast = step.causal and step.stream_element != step.element
    return 1.0 * shape.vocab * shape.hidden * step.element if upcast else 0.0


def head_bytes(shape: Architecture, step: Step) -> float:
    """When the backward pass reaches a quantised head: kept logits, a piece's, the dense head."""
    framework = step.program
    if not (framework.quantises_head and step.causal and step.format in QUANTISED):
        return 0.0 * step.tokens
    kept = framework.kept_logit_bytes[step.compute]
    # Of one piece the two gradients of the softmax in fp32, and their cast.
    piece = step.batch_size * framework.head_chunk_tokens * (2 * FP32 + step.element)
    head = shape.hidden * framework.dequantised_bytes[step.compute]
    return shape.vocab * (step.tokens * kept + piece + head)
