"""Peak allocated bytes of a training step, and bytes in use while serving, by part.

Training peak, first-principle terms per token of a transformer block (elements kept for the
backward pass with a frozen base, attention that keeps no score matrix): both norms' inputs (fp32
under bf16), query, key, value and output of the attention, the MLP's activations, and what the
adapter keeps. Logits: of a full loss the logits, their fp32 copy under bf16, the log-softmax and
its gradient; of the compiler's own, one chunk in place.
"""

from typing import NamedTuple

from planner.architecture import Architecture
from planner.cost.adapter import AdapterCost
from planner.cost.elementwise import larger
from planner.method import Method

BITS_PER_WEIGHT = {"fp32": 32.0, "bf16": 16.0, "nf4": 4.0 + 8 / 64 + 32 / (64 * 256)}
"""NF4: a 4-bit code, an 8-bit scale per 64 weights, an fp32 scale per 256 of those."""

COMPUTE_BYTES = {"fp32": 4, "bf16": 2}
LOGIT_BYTES = {
    "full": {"fp32": 4 + 4 + 4, "bf16": 2 + 4 + 4 + 4},
    "chunked": {"fp32": 4, "bf16": 2 + 4},
}
CHUNK_LOGITS = 2**25
"""Logits that the compiler's loss holds at once (compiler/train/loss.py), reused by every chunk."""

STATE_BYTES = {"adamw": 8, "paged_adamw8bit": 2}
ADAPTER_BYTES = 4

STORED_BAND = 0.02
"""Half-width for what is counted from shapes: rounding of an allocator."""
LIVE_BAND = 0.15
"""Half-width for what lives during a pass; assumed."""


class TrainingMemory(NamedTuple):
    """Bytes by part; `accumulates` keeps the gradients alive beside the activations."""

    weights_bytes: float
    adapters_bytes: float
    gradients_bytes: float
    optimizer_bytes: float
    activations_bytes: float
    logits_bytes: float
    workspace_bytes: float
    accumulates: bool

    @property
    def stored_bytes(self) -> float:
        return self.weights_bytes + self.adapters_bytes + self.optimizer_bytes

    @property
    def live_bytes(self) -> float:
        """At the start of the backward pass, or at its end when all gradients are there."""
        backward = self.activations_bytes + self.logits_bytes
        if self.accumulates:
            backward += self.gradients_bytes
        return self.workspace_bytes + larger(backward, self.gradients_bytes)

    @property
    def peak_allocated_bytes(self) -> float:
        return self.stored_bytes + self.live_bytes

    @property
    def half_width_bytes(self) -> float:
        return STORED_BAND * self.stored_bytes + LIVE_BAND * self.live_bytes

    def parts(self) -> dict[str, float]:
        return {k: v for k, v in self._asdict().items() if k != "accumulates"}


class Step(NamedTuple):
    """One micro-batch of training."""

    method: Method
    format: str
    compute: str
    optimizer: str
    batch_size: int
    sequence_length: int
    checkpointing: str
    accumulates: bool
    causal: bool
    labels: int
    loss: str = "chunked"


def weights_bytes(shape: Architecture, format_: str, other_bytes: int) -> float:
    """Linears in their format; embeddings, head, norms and biases at `other_bytes` each."""
    linear = shape.linear_parameters
    return linear * BITS_PER_WEIGHT[format_] / 8 + (shape.parameters - linear) * other_bytes


def training_memory(shape: Architecture, adapter: AdapterCost, step: Step) -> TrainingMemory:
    element = COMPUTE_BYTES[step.compute]
    other = 4 if step.format == "fp32" or step.compute == "fp32" else 2
    trained = adapter.trainable_parameters
    width = ADAPTER_BYTES
    if step.method.trains_base:
        trained, width = shape.parameters, COMPUTE_BYTES[step.format]
    if not step.causal:
        trained = trained + step.labels * (shape.hidden + 1)
    states = STATE_BYTES[step.optimizer] * (width / 4 if step.optimizer == "adamw" else 1)
    frozen_pairs = adapter.stored_bytes + adapter.shared_bytes
    own = 0.0 if step.method.trains_base else larger(frozen_pairs, trained * width)
    return TrainingMemory(
        weights_bytes=weights_bytes(shape, step.format, other),
        adapters_bytes=own,
        gradients_bytes=trained * width,
        optimizer_bytes=trained * states,
        activations_bytes=_activations_bytes(shape, adapter, step, element),
        logits_bytes=_logits_bytes(shape, step),
        workspace_bytes=_workspace_bytes(shape, step, element),
        accumulates=step.accumulates,
    )


def _activations_bytes(
    shape: Architecture, adapter: AdapterCost, step: Step, element: int
) -> float:
    tokens = step.batch_size * step.sequence_length
    norms = 2 * shape.hidden * 4
    attention = 4 * shape.heads * shape.head_dim * element
    mlp = (3 if shape.gated else 1) * shape.intermediate * element
    block = norms + attention + mlp + adapter.saved_elements * element / shape.layers
    if step.checkpointing == "block":
        # One block is recomputed at a time; the others keep only their input.
        return tokens * (shape.layers * shape.hidden * element + block)
    return tokens * shape.layers * block


def _logits_bytes(shape: Architecture, step: Step) -> float:
    if not step.causal:
        return step.batch_size * step.labels * LOGIT_BYTES["full"][step.compute]
    logits = step.batch_size * step.sequence_length * shape.vocab
    held = min(logits, CHUNK_LOGITS) if step.loss == "chunked" else logits
    return held * LOGIT_BYTES[step.loss][step.compute]


def _workspace_bytes(shape: Architecture, step: Step, element: int) -> float:
    """The largest weight once more in the arithmetic's type, where it is stored in another."""
    if step.format == step.compute:
        return 0.0
    return float(element * shape.largest_weight)


class ServingMemory(NamedTuple):
    weights_bytes: float
    bank_bytes: float
    cache_bytes: float
    workspace_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.weights_bytes + self.bank_bytes + self.cache_bytes + self.workspace_bytes

    @property
    def half_width_bytes(self) -> float:
        return STORED_BAND * (self.total_bytes - self.workspace_bytes) + (
            LIVE_BAND * self.workspace_bytes
        )

    def parts(self) -> dict[str, float]:
        return self._asdict()


class Load(NamedTuple):
    """What is served: sequences in one batch, their context, and the widths of the runtime."""

    sequences: int
    context_length: int
    prompt_tokens: int
    causal: bool
    cache_element_bytes: int
    other_bytes: int


def serving_memory(
    shape: Architecture, adapter: AdapterCost, format_: str, export: str, load: Load
) -> ServingMemory:
    """One base and a bank with a row per active tenant, or one merged model per active tenant."""
    weights = weights_bytes(shape, format_, load.other_bytes)
    bank = load.sequences * adapter.row_bytes + adapter.shared_bytes
    if export == "merged":
        weights, bank = weights * load.sequences, 0.0
    return ServingMemory(
        weights_bytes=weights,
        bank_bytes=bank,
        cache_bytes=load.sequences * cache_bytes(shape, load),
        workspace_bytes=_pass_bytes(shape, load),
    )


def cache_bytes(shape: Architecture, load: Load) -> float:
    """Keys and values of one sequence at full context."""
    if not load.causal:
        return 0.0
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim
    return load.context_length * per_token * load.cache_element_bytes


def _pass_bytes(shape: Architecture, load: Load) -> float:
    """Live at once in the widest block of a prompt pass, fp32; one prompt is read at a time."""
    width = 4 * shape.hidden + 3 * shape.intermediate
    logits = shape.vocab if load.causal else 0
    return 4.0 * load.prompt_tokens * (width + logits)
