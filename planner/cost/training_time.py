"""What a training step has to do."""

from planner.architecture import Architecture
from planner.cost.activations import blocks
from planner.cost.adapter import AdapterCost
from planner.cost.elementwise import where
from planner.cost.weights import BITS_PER_WEIGHT, COMPUTE_BYTES, QUANTISED
from planner.cost.work import EAGER, Work, activation_bytes

LOGIT_TRAFFIC_BYTES = 30.0
"""Per logit of a loss: to fp32, log-softmax, and the gradients of both."""
SAVED_TRAFFIC_BYTES = 64.0
"""Per element that an adapter keeps for the backward pass: cast, scaled, added and differentiated
in fp32, eight reads and writes of both."""
BACKWARD_TRAFFIC = 2.0
"""Passes over activations of a backward pass, against one of a forward pass."""
ADAMW_PASSES = 24.0
"""Reads and writes per trained number of clipping and torch's multi-tensor AdamW, counted."""
SINGLE_PASSES = 6.0
"""The same of clipping and an update in one kernel: number and gradient read, number written."""
UPDATE_PASSES = {"sgd": SINGLE_PASSES, "adamw8bit": SINGLE_PASSES, "paged_adamw8bit": SINGLE_PASSES}
STATE_TRAFFIC_BYTES = {"adamw8bit": 4.0, "paged_adamw8bit": 4.0}
"""Two moments of a byte read and written in that kernel (bitsandbytes, blockwise)."""
SCORE_PASSES = 8.0
"""Reads and writes of a score that attention keeps: its product, scale, mask, softmax and use."""

BACKWARD_HOST = 1.8
"""Of a forward pass's launches, those of a backward pass (LitGPT, LLaMA-Adapter); published."""


def training_step(
    shape: Architecture,
    adapter: AdapterCost,
    tokens: float,
    passes: float,
    *,
    micro_batches: float = 1,
    sequence_length: float = 0,
    recomputes: float = 0.0,
    format_: str = "bf16",
    compute: str = "bf16",
    adapter_compute: str = "fp32",
    attention: str = "flash",
    optimizer: str = "adamw",
    trained: float | None = None,
    trained_bytes: float = 4.0,
    cast_bytes: float = 0.0,
) -> Work:
    """`tokens` of `micro_batches` and one update of `trained` numbers.

    `passes` counts forward-equivalents over the base: 2 frozen, 3 trained, +1 recomputed, of which
    `recomputes` says how many. The adapter costs three whatever the base: forward, and the
    gradients of x and of itself, in fp32 or the type of the products. `trained` defaults to the
    adapter's own; `cast_bytes` are read and written for each of them in a micro-batch where the
    arithmetic has another type.
    """
    updated = adapter.trainable_parameters if trained is None else trained
    element = COMPUTE_BYTES[compute]
    length = where(sequence_length > 0, sequence_length, 1.0)
    added = where(sequence_length > 0, adapter.input_tokens, 0.0)
    all_tokens = tokens * adapter.forward_passes * (1.0 + added / length)
    base = 2.0 * (shape.active_linear_parameters + shape.vocab * shape.hidden)
    scores = sequence_length * _score_flops(shape, attention)
    own = tokens * adapter.multiplications + micro_batches * adapter.pass_multiplications
    own = 2.0 * (3.0 + recomputes) * own
    cast = adapter_compute == compute
    walks = 1.0 + BACKWARD_TRAFFIC + recomputes
    written = sequence_length * _score_bytes(shape, attention, element)
    moved = (
        walks * (blocks(shape) * activation_bytes(shape, element) + written)
        + LOGIT_TRAFFIC_BYTES * shape.vocab
    )
    kept = SAVED_TRAFFIC_BYTES * (
        tokens * adapter.saved_elements + micro_batches * adapter.pass_elements
    )
    converted = (2.0 + recomputes) * micro_batches * _converted_bytes(shape, format_, compute)
    return Work(
        flops=all_tokens * passes * (base + scores) + (own if cast else 0.0),
        bytes_moved=passes * micro_batches * element * shape.linear_parameters,
        adapter_flops=0.0 if cast else own,
        traffic_bytes=all_tokens * moved
        + kept
        + converted
        + (micro_batches * cast_bytes + _update_bytes(optimizer, trained_bytes)) * updated,
        host_seconds=micro_batches
        * blocks(shape)
        * EAGER.host_seconds(adapted=True, quantised=format_.startswith("nf4"))
        * (1.0 + BACKWARD_HOST + recomputes),
        waits=False,
    )


def _update_bytes(optimizer: str, trained_bytes: float) -> float:
    """Read and written per trained number by clipping and one update."""
    passes = UPDATE_PASSES.get(optimizer, ADAMW_PASSES)
    return passes * trained_bytes + STATE_TRAFFIC_BYTES.get(optimizer, 0.0)


def _attentions(shape: Architecture) -> int:
    """Of all blocks; a decoder with an encoder has two in each of its own."""
    return blocks(shape) + (shape.layers if shape.kind == "encoder_decoder" else 0)


def _score_flops(shape: Architecture, attention: str) -> float:
    """Of a token's attention to each of its sequence's; a causal one sees half of them, unless it
    computes all scores and masks them.
    """
    halved = 0 if shape.kind == "encoder" or attention == "full" else shape.layers
    return (4.0 * _attentions(shape) - 2.0 * halved) * shape.heads * shape.head_dim


def _score_bytes(shape: Architecture, attention: str, element: int) -> float:
    """Of the same that are kept: read and written, the softmax in fp32 and cast."""
    if attention == "flash":
        return 0.0
    cast = 8.0 if element != COMPUTE_BYTES["fp32"] else 0.0
    return _attentions(shape) * shape.heads * (SCORE_PASSES * element + cast)


def _converted_bytes(shape: Architecture, format_: str, compute: str) -> float:
    """Read and written to have every quantised weight once in the arithmetic's type; dense ones are
    held in it.
    """
    if format_ not in QUANTISED:
        return 0.0
    element = COMPUTE_BYTES[compute]
    return shape.linear_parameters * (BITS_PER_WEIGHT[format_] / 8 + 2.0 * element)
