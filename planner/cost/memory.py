"""Bytes in use while serving, by part; those of training are planner.cost.training's."""

from typing import NamedTuple

from planner.architecture import Architecture
from planner.cost.adapter import AdapterCost
from planner.cost.elementwise import larger, smaller
from planner.cost.step import Step
from planner.cost.trace import FLOAT_BYTES
from planner.cost.training import LIVE_BAND, STORED_BAND, TrainingMemory, training_memory
from planner.cost.weights import BITS_PER_WEIGHT, COMPUTE_BYTES, QUANTISED, weights_bytes

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
    "read_row_bytes",
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
    """What is served: tenants with a row in the bank or a model of their own (`slots`), sequences
    in one batch, their context, and how the runtime does it.

    Widths are bytes of a key or value, of a number that no format quantises and that flows between
    the products, and of a number in an adapter's row. A prompt's `logits` are those of its "last"
    token or of "all"; `writes_scores` says that attention writes all of a layer's; `beside_window`
    is how many tokens a sliding layer's cache holds beside its window, None that it holds all;
    `quantises_experts` that routed experts are in the base's format too.
    """

    slots: int
    sequences: int
    context_length: int
    prompt_tokens: int
    causal: bool
    cache_element_bytes: int
    other_bytes: int
    row_element_bytes: int
    logits: str = "last"
    writes_scores: bool = False
    beside_window: int | None = None
    quantises_experts: bool = True

    @property
    def tenants(self) -> int:
        """Different ones in one batch, at most."""
        return min(self.slots, self.sequences)


def serving_memory(
    shape: Architecture, adapter: AdapterCost, format_: str, export: str, load: Load
) -> ServingMemory:
    """One base and a bank with a row per slot, or one merged model per slot."""
    weights = weights_bytes(shape, format_, load.other_bytes)
    weights += shape.expert_parameters * (expert_bytes(format_, load) - bytes_of(format_))
    bank: float = load.slots * row_bytes(adapter, load) + _held(adapter.shared_bytes, load)
    if export == "merged":
        weights, bank = weights * load.slots, 0.0
    return ServingMemory(
        weights_bytes=weights,
        bank_bytes=bank,
        cache_bytes=load.sequences * cache_bytes(shape, load),
        workspace_bytes=_workspace_bytes(shape, load),
    )


def row_bytes(adapter: AdapterCost, load: Load) -> float:
    """Of one tenant in the bank, in the runtime's type."""
    return _held(adapter.row_bytes, load)


def read_row_bytes(adapter: AdapterCost, load: Load) -> float:
    """Of that row what a sequence's tokens read."""
    return _held(adapter.row_bytes - adapter.unread_row_bytes, load)


def _held(single_bytes: float, load: Load) -> float:
    """What numbers that take so many bytes in fp32 take in a bank of the runtime."""
    return single_bytes * load.row_element_bytes // FLOAT_BYTES


def expert_bytes(format_: str, load: Load) -> float:
    """Of a routed expert's weight."""
    dense = format_ in QUANTISED and not load.quantises_experts
    return load.other_bytes if dense else bytes_of(format_)


def bytes_of(format_: str) -> float:
    """Of a weight in that format."""
    return BITS_PER_WEIGHT[format_] / 8


def cache_bytes(shape: Architecture, load: Load, tokens: float | None = None) -> float:
    """Keys and values of a sequence of so many tokens, by default of a full context.

    An encoder-decoder's of what it read are its cross-attention's, of what it wrote its own.
    """
    if not load.causal:
        return 0.0
    length: float = load.context_length if tokens is None else tokens
    held = shape.layers * length
    if load.beside_window is not None and shape.sliding_layers:
        window = smaller(length, shape.sliding_window + load.beside_window)
        held = held - shape.sliding_layers * (length - window)
    return held * 2 * shape.kv_heads * shape.head_dim * load.cache_element_bytes


def _workspace_bytes(shape: Architecture, load: Load) -> float:
    """Live at once in the larger of a prompt, which is read alone, and a decoding step."""
    prompt = load.prompt_tokens
    if not load.causal:
        return _pass_bytes(shape, load, prompt, prompt, 0)
    # A decoder with an encoder starts with one token of its own.
    answered = prompt if load.logits == "all" and shape.kind == "decoder" else 1
    return larger(
        _pass_bytes(shape, load, prompt, prompt, answered),
        _pass_bytes(shape, load, load.sequences, load.context_length, load.sequences),
    )


def _pass_bytes(
    shape: Architecture, load: Load, tokens: float, context: float, answered: float
) -> float:
    """In the widest block, and the fp32 scores and logits of `answered` tokens."""
    width = 4 * shape.hidden + 3 * shape.active_intermediate
    scores = shape.heads * context if load.writes_scores else 0
    return tokens * (load.other_bytes * width + FLOAT_BYTES * scores) + (
        FLOAT_BYTES * answered * shape.vocab
    )
