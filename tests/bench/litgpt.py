"""LitGPT's own adapters as costs: what its modules keep for the backward pass, per token.

Read in litgpt/lora.py, adapter.py and adapter_v2.py: query, key and value are one product with
one adapter, dropout is on in training, and LLaMA-Adapter starts at the third layer.
"""

from planner.architecture import Architecture
from planner.cost.activations import Pass, block_bytes
from planner.cost.adapter import AdapterCost
from planner.cost.framework import LITGPT_2023

PREFIX_TOKENS = 10
FIRST_ADAPTED_LAYER = 2
QKV = ("query", "key", "value")
SHORT_NAMES = {"q": "query", "k": "key", "v": "value"}
EVERYTHING = frozenset((*QKV, "projection", "mlp", "head"))


def places(text: str) -> frozenset[str]:
    """The parts that a row's target_modules names."""
    text = text.split("(")[0].strip()
    if text.startswith("all linear"):
        return EVERYTHING
    names = [name.strip() for name in text.split(",") if name.strip()]
    return frozenset(SHORT_NAMES.get(name, name) for name in names)


def lora_cost(shape: Architecture, rank: int, chosen: frozenset[str]) -> AdapterCost:
    """LoRALinear and LoRAQKVLinear; every adapted product keeps a dropped copy of its input."""
    hidden, inner = shape.hidden, shape.intermediate
    widths = _widths(shape)
    enabled = [name for name in QKV if name in chosen]
    outputs = sum(widths[name] for name in enabled)
    inputs = hidden if enabled else 0
    latents = rank * len(enabled)
    numbers = rank * (len(enabled) * hidden + outputs)
    if "projection" in chosen:
        inputs, latents = inputs + widths["query"], latents + rank
        numbers += rank * (widths["query"] + hidden)
    if "mlp" in chosen:
        linears = 3 if shape.gated else 2
        inputs, latents = inputs + (linears - 1) * hidden + inner, latents + linears * rank
        numbers += linears * rank * (hidden + inner)
    # An update of some of query, key and value is copied into a padded one by index_copy, whose
    # gradient keeps the source.
    padded = outputs if 0 < len(enabled) < len(QKV) else 0
    head = "head" in chosen
    return _cost(
        numbers=shape.layers * numbers + head * rank * (hidden + shape.vocab),
        saved=shape.layers * (latents + padded) + head * rank,
        inputs=shape.layers * inputs + head * hidden,
    )._replace(reaches_mlp=int(not shape.parallel or "mlp" in chosen))


def adapter_v1_cost(shape: Architecture, element: int, *, quantised: bool) -> AdapterCost:
    """Attention to a learned prefix keeps a second output; layers before the first keep nothing."""
    adapted = shape.layers - FIRST_ADAPTED_LAYER
    run = Pass(0, element, element, "flash", LITGPT_2023)
    before = FIRST_ADAPTED_LAYER * block_bytes(shape, run) / element
    if quantised:
        before += FIRST_ADAPTED_LAYER * (2 * shape.hidden + shape.intermediate)
    queries = shape.heads * shape.head_dim
    numbers = adapted * (PREFIX_TOKENS * shape.hidden + shape.heads)
    return _cost(numbers=numbers, saved=adapted * queries - before, inputs=0)


def adapter_v2_cost(shape: Architecture, element: int) -> AdapterCost:
    """A scale and a bias on every linear keep its output; trained RMSNorms what they scale."""
    v1 = adapter_v1_cost(shape, element, quantised=False)
    adapted = shape.layers - FIRST_ADAPTED_LAYER
    queries = shape.heads * shape.head_dim
    widths = _widths(shape)
    outputs = sum(widths[name] for name in QKV) + 2 * shape.hidden
    outputs += (2 if shape.gated else 1) * shape.intermediate
    wide = sum(norm.width == shape.hidden for norm in shape.norms)
    # The normalised fp32 values; LayerNorm's kernel needs nothing more.
    norms = wide * shape.hidden * 4 / element if shape.norm == "rmsnorm" else 0
    numbers = 2 * (shape.layers * outputs + shape.vocab)
    numbers += wide * shape.hidden * (1 if shape.norm == "rmsnorm" else 2)
    return _cost(
        numbers=v1.trainable_parameters + numbers,
        saved=adapted * queries + shape.layers * outputs + norms + shape.vocab,
        inputs=0,
    )


def _widths(shape: Architecture) -> dict[str, int]:
    keys = shape.kv_heads * shape.head_dim
    return {"query": shape.heads * shape.head_dim, "key": keys, "value": keys}


def _cost(*, numbers: int, saved: float, inputs: int) -> AdapterCost:
    return AdapterCost(
        trainable_parameters=numbers,
        stored_bytes=4 * numbers,
        shared_bytes=0,
        row_bytes=0,
        multiplications=0,
        saved_elements=saved + inputs,  # type: ignore[arg-type]
        optimizer_elements=2 * numbers,
        shared_inputs=inputs,
        own_inputs=inputs,
        dropped_inputs=inputs,
    )
