"""What serving a prompt and a decoding step have to do, and what follows for requests.

    served = base (1 + a) + b f(rank) + miss rate x bytes of a row / link

a is the host time that launching the adapters' products adds; b f(rank) the rows that a batch
gathers, one per sequence whichever tenants they are of (S-LoRA: one tenant costs what 200 do) or,
where an engine sorts sequences by tenant, one per tenant; and their products.
"""

from typing import NamedTuple

from planner.architecture import Architecture
from planner.cost.adapter import AdapterCost
from planner.cost.elementwise import remembered, where
from planner.cost.memory import Load, bytes_of, cache_bytes, expert_bytes, read_row_bytes
from planner.cost.stacks import Stack, reading, writing
from planner.cost.work import FUSED, Engine, Work, activation_bytes
from planner.spec import Hardware

DEQUANTISE_FLOPS = 2.0
"""Per 4-bit weight and pass: look up the code, multiply by its block's scale."""


class Served(NamedTuple):
    """How the base is stored and the adapter is carried, by which engine.

    `miss_rate` is the share of requests whose tenant is not in the bank.
    """

    format: str
    export: str
    precision: str
    engine: Engine = FUSED
    miss_rate: float = 0.0


class Throughput(NamedTuple):
    """Of one device with a full batch."""

    requests_per_second: float
    tokens_per_second: float


def first_token(shape: Architecture, adapter: AdapterCost, served: Served, load: Load) -> Work:
    """One prompt of one tenant, and its first token or its label."""
    tokens = load.prompt_tokens + adapter.input_tokens
    work = _prompt(shape, served, load, tokens)
    carried = _carried(adapter, served, load)
    adapted = tokens * reading(shape).share
    if shape.kind == "encoder_decoder":
        adapted = adapted + writing(shape).share
    return work._replace(
        adapter_flops=_adapter_flops(adapter, served, adapted),
        traffic_bytes=work.traffic_bytes + carried,
        link_bytes=served.miss_rate * carried,
    )


def per_token(shape: Architecture, adapter: AdapterCost, served: Served, load: Load) -> Work:
    """One decoding step of all sequences in one batch, at half the context."""
    rows = load.sequences
    work = _decoding(shape, served, load, adapter.input_tokens + adapter.cache_tokens)
    share = writing(shape).share
    read = share * (load.tenants if served.engine.groups else rows)
    return work._replace(
        adapter_flops=_adapter_flops(adapter, served, rows * share),
        traffic_bytes=work.traffic_bytes + read * _carried(adapter, served, load),
    )


@remembered
def _prompt(shape: Architecture, served: Served, load: Load, tokens: int) -> Work:
    """Of a prompt, whatever is adapted; an encoder-decoder's first token is another pass."""
    stack = reading(shape)
    scores = 4.0 * stack.blocks * tokens * tokens * shape.heads * shape.head_dim
    head = 2.0 * shape.vocab * shape.hidden if load.causal else 0.0
    work = _pass(shape, stack, served, load, tokens)
    if shape.kind == "encoder_decoder":
        work = work.then(_pass(shape, writing(shape), served, load, 1))
    kept = _unformatted_bytes(shape, load)
    return work._replace(flops=work.flops + scores + head, bytes_moved=work.bytes_moved + kept)


@remembered
def _decoding(shape: Architecture, served: Served, load: Load, learned_tokens: int) -> Work:
    """Of a decoding step, whatever is adapted; every sequence starts with the learned tokens."""
    rows = load.sequences
    # Each tenant has its own weights, or its own batch, so nothing is shared.
    alone = served.export == "merged" or not served.engine.mixes
    passes = load.tenants if alone else 1
    work = _pass(shape, writing(shape), served, load, rows / passes)
    streamed = work.bytes_moved + _unformatted_bytes(shape, load)
    if not shape.tied:
        # The embedding is looked up, not streamed.
        streamed = streamed - shape.vocab * shape.hidden * load.other_bytes
    context = load.context_length / 2 + learned_tokens
    if shape.kind == "encoder_decoder":
        # All of what was read, and half of what will be written.
        context += load.prompt_tokens / 2
    cached = cache_bytes(shape, load, context)
    return work._replace(
        flops=passes * work.flops + rows * 2.0 * shape.vocab * shape.hidden,
        bytes_moved=passes * streamed,
        fast_flops=passes * work.fast_flops,
        traffic_bytes=passes * work.traffic_bytes + rows * cached,
        host_seconds=passes * work.host_seconds,
    )


def throughput(
    prompt: Work, step: Work, load: Load, output_tokens: float, device: Hardware, compute: str
) -> Throughput | None:
    """Of continuous batching: a request takes its prompt, and its share of every step it is in.

    Prompts that wait are read in one pass, so their launches are shared and left out. None where
    the device's figures are unknown.
    """
    reading = prompt._replace(host_seconds=0.0).seconds(device, compute)
    decoding = step.seconds(device, compute)
    if reading is None or decoding is None:
        return None
    request = reading + output_tokens * decoding / load.sequences
    return Throughput(1.0 / request, output_tokens / request)


def miss_rate(active_tenants: int, slots: int) -> float:
    """Of requests spread evenly over the active tenants, those that find no row of theirs."""
    return max(0.0, 1.0 - slots / active_tenants)


def _pass(shape: Architecture, stack: Stack, served: Served, load: Load, tokens: float) -> Work:
    """What one forward pass over `tokens` has in common, as prompt or as batch."""
    unmerged = served.export == "unmerged"
    engine, fast = served.engine, served.precision == "fast"
    quantised = served.format == "nf4"
    products = 2.0 * tokens * stack.active
    element, expert = load.other_bytes, expert_bytes(served.format, load)
    traffic = tokens * engine.activation_share * stack.blocks * activation_bytes(shape, element)
    if quantised and engine.dequantise_kernels:
        # Written in the arithmetic's type, and read again by the product; a single row is
        # multiplied by the codes (bitsandbytes' gemv_4bit, since 0.40).
        traffic = traffic + where(tokens == 1, 0.0, stack.linears * 2.0 * element)
    return Work(
        flops=(0.0 if fast else products)
        + (DEQUANTISE_FLOPS * stack.linears if quantised else 0.0),
        bytes_moved=stack.linears * bytes_of(served.format)
        + shape.expert_parameters * (expert - bytes_of(served.format))
        - _untouched(shape, tokens) * expert,
        fast_flops=products if fast else 0.0,
        traffic_bytes=traffic,
        host_seconds=stack.blocks * engine.host_seconds(adapted=unmerged, quantised=quantised),
        waits=engine.waits,
    )


def _unformatted_bytes(shape: Architecture, load: Load) -> float:
    """Of embeddings, head, norms and biases."""
    return (shape.parameters - shape.linear_parameters) * load.other_bytes


def _untouched(shape: Architecture, tokens: float) -> float:
    """Weights of the experts that none of the tokens is routed to, where routes are even."""
    if not shape.experts:
        return 0.0
    missed: float = (1.0 - shape.experts_per_token / shape.experts) ** tokens
    return shape.expert_parameters * missed


def _adapter_flops(adapter: AdapterCost, served: Served, tokens: float) -> float:
    return 2.0 * tokens * adapter.served_multiplications if served.export == "unmerged" else 0.0


def _carried(adapter: AdapterCost, served: Served, load: Load) -> float:
    """Bytes of a tenant's row that a sequence gathers."""
    return read_row_bytes(adapter, load) if served.export == "unmerged" else 0.0
