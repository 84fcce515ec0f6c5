"""Peak allocated bytes of a training step, by part.

The peak is the largest of the moments at which a step holds most:

    loss        every activation, and what the loss holds besides
    backward    every activation, and the gradients that flow through the last block
    end         every gradient, and the first block
    update      every gradient, and what the optimizer holds besides

Stored weights, adapters and optimizer states are there at all of them; gradients too from the
second micro-batch on. With checkpointing a block's activations exist only while it is recomputed.
"""

from typing import NamedTuple

from planner.architecture import Architecture
from planner.cost.activations import (
    attention_bytes,
    block_bytes,
    blocks,
    mlp_bytes,
    outside_bytes,
)
from planner.cost.adapter import AdapterCost
from planner.cost.adapter_activations import (
    adapter_activation_bytes,
    cached_bytes,
    cast_bytes,
    inner_bytes,
    quantised_input_bytes,
)
from planner.cost.elementwise import larger, remembered, where
from planner.cost.loss import head_bytes, loss_bytes, upcast_head_bytes
from planner.cost.step import Step
from planner.cost.stored import adapters_bytes, optimizer_bytes, stored_weights_bytes
from planner.cost.weights import FP32, QUANTISED

STORED_BAND = 0.02
"""Half-width for what is counted from shapes: rounding of an allocator."""
LIVE_BAND = 0.15
"""Half-width for what lives during a pass; assumed."""


class TrainingMemory(NamedTuple):
    """Bytes by part, each at its own largest; `peak_allocated_bytes` is at one moment."""

    weights_bytes: float
    adapters_bytes: float
    gradients_bytes: float
    optimizer_bytes: float
    activations_bytes: float
    logits_bytes: float
    workspace_bytes: float
    live_bytes: float

    @property
    def stored_bytes(self) -> float:
        return self.weights_bytes + self.adapters_bytes + self.optimizer_bytes

    @property
    def peak_allocated_bytes(self) -> float:
        return self.stored_bytes + self.live_bytes

    @property
    def half_width_bytes(self) -> float:
        return STORED_BAND * self.stored_bytes + LIVE_BAND * self.live_bytes

    def parts(self) -> dict[str, float]:
        return {k: v for k, v in self._asdict().items() if k != "live_bytes"}


class Base(NamedTuple):
    """Bytes of a step that are the same whatever is adapted.

    step         with the program that runs it, and its longest sequence
    width        of a trained number; `head` of them are a classifier's
    loss         what it holds besides the activations, at its largest
    block        kept by one block, of which `attention` by its attention and `mlp` by its MLP
    outside      kept by what follows the blocks
    copies       kept by all quantised products
    stream       one tensor on the residual stream
    norm_flow    gradients in the last norm
    position     keys and values of one learned position, of the whole batch
    dequantised  one weight in the arithmetic's type, at its largest
    """

    step: Step
    head: int
    width: int
    weights: float
    loss: float
    block: float
    attention: float
    mlp: float
    outside: float
    copies: float
    stream: float
    norm_flow: float
    position: float
    dequantised: float


def training_memory(shape: Architecture, adapter: AdapterCost, step: Step) -> TrainingMemory:
    base = _base(shape, step, adapter.input_tokens)
    step, head, width = base.step, base.head, base.width
    gradients = (adapter.trainable_parameters + head) * width
    held = gradients if step.accumulates else 0.0
    kept = _kept_bytes(shape, adapter, base)
    flow = _flowing_bytes(shape, adapter, step) - inner_bytes(shape, adapter, step)
    backward = _backward_bytes(adapter, base, kept, flow)
    embedding = _embedding_bytes(shape, base)
    end = gradients + larger(embedding, _first_block_bytes(shape, base, kept.block + flow))
    roots = _roots_bytes(step, gradients)
    forward = held + larger(kept.whole + base.outside + base.loss, backward)
    live = larger(forward, larger(end, gradients + roots))
    return TrainingMemory(
        weights_bytes=base.weights,
        adapters_bytes=adapters_bytes(adapter, step, head),
        gradients_bytes=gradients,
        optimizer_bytes=optimizer_bytes(shape, adapter, step, head, width),
        activations_bytes=kept.whole + base.outside + kept.recomputed,
        logits_bytes=base.loss,
        workspace_bytes=larger(backward - kept.whole - kept.recomputed, larger(roots, embedding)),
        live_bytes=live,
    )


@remembered
def _base(shape: Architecture, step: Step, input_tokens: int) -> Base:
    length = step.sequence_length + input_tokens
    attention = "full" if shape.writes_scores else step.attention
    step = step._replace(sequence_length=length, framework=step.program, attention=attention)
    width = step.trained_element if step.trains_base else step.adapter_element
    tokens, run = step.tokens, step.run
    largest = shape.largest_dense_weight
    if step.program.quantises_experts:
        largest = shape.largest_weight
    dequantised = step.program.dequantised_bytes[step.compute] * largest
    return Base(
        step=step,
        head=0 if step.causal else step.labels * (shape.hidden + 1),
        width=width,
        weights=stored_weights_bytes(shape, step),
        loss=larger(loss_bytes(shape, step), head_bytes(shape, step))
        + upcast_head_bytes(shape, step),
        block=tokens * block_bytes(shape, run),
        attention=tokens * attention_bytes(shape, run),
        mlp=tokens * mlp_bytes(shape, run),
        outside=tokens * outside_bytes(shape, run),
        copies=tokens * quantised_input_bytes(shape, step),
        stream=tokens * shape.hidden * step.stream_element,
        norm_flow=_norm_flow_bytes(shape, step),
        position=step.batch_size * cached_bytes(shape, step),
        dequantised=dequantised if step.format in QUANTISED else 0.0,
    )


def _backward_bytes(adapter: AdapterCost, base: Base, kept: "Kept", flow: float) -> float:
    """The largest of the moments at the start of the backward pass, gradients left out.

    In the last norm everything is alive but what the head read. Then the last block dequantises
    its last weight; and then, when the MLP's last linear has let its input go, gradients of the
    product and of its factors flow. A recomputed block needs its output until then.
    """
    norm = kept.whole + base.outside - base.stream + base.norm_flow
    whole = kept.whole + kept.recomputed
    own = adapter.workspace_elements * base.step.element
    dequantised = whole + base.stream + own + base.dequantised
    output = base.stream if base.step.checkpointing == "block" else 0.0
    return larger(norm, larger(dequantised, whole - output + flow))


class Kept(NamedTuple):
    """Bytes kept for the backward pass: by all blocks, by the one being recomputed, and by one."""

    whole: float
    recomputed: float
    block: float


def _kept_bytes(shape: Architecture, adapter: AdapterCost, base: Base) -> Kept:
    count, step = blocks(shape), base.step
    kept = step.tokens * adapter_activation_bytes(shape, adapter, step) + base.copies
    # No gradient reaches the first block's attention from adapters of the MLP alone, nor an MLP
    # beside it from those of the attention.
    kept = kept - (1 - adapter.reaches_attention) * base.attention
    kept = kept - (1 - adapter.reaches_mlp) * base.mlp
    once = cast_bytes(shape, adapter, step) + adapter.pass_elements * step.element
    once = once + adapter.cache_tokens * base.position
    each = base.block + (kept + once) / count
    if step.checkpointing == "block":
        return Kept(count * base.stream, each, each)
    return Kept(count * each, 0.0, each)


def _flowing_bytes(shape: Architecture, adapter: AdapterCost, step: Step) -> float:
    """Gradients in an MLP: of the residual, of the product and of its factors; without a gate, of
    an adapter's scale before it is summed over tokens. Routed experts hold their outputs three
    times when they are weighted: before it, after it, and ordered by token or their product with
    the gradient; these are gone when the factors' gradients flow.
    """
    tensors: float = 3
    if not shape.gated:
        # Scales keep outputs, which latents are narrower than.
        scales = adapter.saved_elements - adapter.shared_inputs >= shape.hidden * blocks(shape)
        tensors = where(scales, 3, 2)
    routed = shape.experts_per_token * shape.hidden
    width = larger(tensors * shape.active_intermediate - routed, 3 * routed)
    return step.tokens * step.stream_element * (shape.hidden + width)


def _norm_flow_bytes(shape: Architecture, step: Step) -> float:
    """Gradients in a norm: in fp32 of the output, of both its factors and of the square, or the
    two that the LayerNorm kernel reads and writes.
    """
    width = 5 * FP32 if shape.norm == "rmsnorm" else 2 * step.stream_element
    return step.tokens * width * shape.hidden


def _roots_bytes(step: Step, gradients: float) -> float:
    """Square roots of AdamW's second moments, one as wide as each gradient."""
    return gradients if step.optimizer == "adamw" and step.program.roots_at_once else 0.0


def _first_block_bytes(shape: Architecture, base: Base, flowing: float) -> float:
    """At the end of the backward pass, besides all gradients: the first block's and the embedding's
    are yet to come.
    """
    if not base.step.trains_base:
        return flowing
    missing = shape.vocab * shape.hidden + shape.linear_parameters / blocks(shape)
    return flowing - missing * base.width


def _embedding_bytes(shape: Architecture, base: Base) -> float:
    """Besides all gradients: that of a trained embedding is cast, or added to the head's."""
    step, width = base.step, base.width
    if not step.trains_base:
        return 0.0
    cast = step.element if width != step.element else 0
    added = width if shape.tied and step.causal and step.program.ties_head else 0
    return float(shape.vocab * shape.hidden * (cast + added))
