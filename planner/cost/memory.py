"""Bytes in use while serving, by part; those of training are planner.cost.training's."""

from typing import NamedTuple

from planner.architecture import Architecture
from planner.cost.adapter import AdapterCost
from planner.cost.trace import FLOAT_BYTES
from planner.cost.training import LIVE_BAND, STORED_BAND, Step, TrainingMemory, training_memory
from planner.cost.weights import BITS_PER_WEIGHT, COMPUTE_BYTES, weights_bytes

__all__ = [
    "BITS_PER_WEIGHT",
    "COMPUTE_BYTES",
    "LIVE_BAND",
    "STORED_BAND",
    "Load",
    "ServingMemory",
    "Step",
    "TrainingMemory",
    "cache_bytes",
    "row_bytes",
    "serving_memory",
    "training_memory",
    "weights_bytes",
]


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
    row_element_bytes: int


def serving_memory(
    shape: Architecture, adapter: AdapterCost, format_: str, export: str, load: Load
) -> ServingMemory:
    """One base and a bank with a row per active tenant, or one merged model per active tenant."""
    weights = weights_bytes(shape, format_, load.other_bytes)
    bank: float = load.sequences * row_bytes(adapter, load) + _held(adapter.shared_bytes, load)
    if export == "merged":
        weights, bank = weights * load.sequences, 0.0
    return ServingMemory(
        weights_bytes=weights,
        bank_bytes=bank,
        cache_bytes=load.sequences * cache_bytes(shape, load),
        workspace_bytes=_pass_bytes(shape, load),
    )


def row_bytes(adapter: AdapterCost, load: Load) -> float:
    """Of one tenant in the bank, in the runtime's type."""
    return _held(adapter.row_bytes, load)


def _held(single_bytes: float, load: Load) -> float:
    """What numbers that take so many bytes in fp32 take in a bank of the runtime."""
    return single_bytes * load.row_element_bytes // FLOAT_BYTES


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
