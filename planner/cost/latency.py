"""Seconds of a training step, a prompt and a decoding step, from what each has to do.

    device = max(operations / rate, weights / bandwidth) + other traffic / bandwidth
    time   = device + host, or the larger of the two where the host works ahead
    served = base (1 + a) + b f(rank) + miss rate x bytes of a row / link

a is the host time that launching the adapters' products adds; b f(rank) the rows that a batch
gathers, one per sequence whichever tenants they are of (S-LoRA: one tenant costs what 200 do), and
their products.

Traffic beside the products is counted from the operations of an eager transformer block: what its
norms, residuals, rotations and activations read and write.
"""

from typing import NamedTuple

from planner.architecture import Architecture
from planner.cost.adapter import AdapterCost
from planner.cost.elementwise import larger, remembered, where
from planner.cost.memory import (
    BITS_PER_WEIGHT,
    COMPUTE_BYTES,
    Load,
    cache_bytes,
    row_bytes,
)
from planner.cost.rates import FAST_SPEEDUP, Rates, reached
from planner.cost.stacks import Stack, reading, writing
from planner.spec import Hardware

TIME_BAND = 0.4
"""Half-width of a predicted time, as a share, unless builds on the machine have taught another."""
DEQUANTISE_FLOPS = 2.0
"""Per 4-bit weight and pass: look up the code, multiply by its block's scale."""

NORM_BYTES = 30.0
"""Read and written per element by an eager norm: to fp32, square, mean, scale, weight, back."""
RESIDUAL_PASSES, ROTATION_PASSES, GATED_PASSES, UNGATED_PASSES = 6.0, 11.0, 5.0, 2.0
"""Reads and writes of an element by two additions, by a rotation, by an MLP's activation."""
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

EAGER_KERNELS = 45.0
"""That an eager block launches, forward: its products, norms, rotations, attention, activations."""
KERNEL_SECONDS = 2.2e-5
"""Of the host to launch one: LitGPT decodes Llama-2 at 1.0 ms a block and token; published."""
BACKWARD_HOST = 1.8
"""Of a forward pass's launches, those of a backward pass (LitGPT, LLaMA-Adapter); published."""


class Engine(NamedTuple):
    """What a runtime adds to arithmetic.

    seconds_per_kernel   of the host, to launch it
    block_kernels        launched for a block of one pass
    adapter_kernels      for the adapters' products beside it
    dequantise_kernels   for its 4-bit weights, where they are not dequantised within the product
    waits                the host needs a step's tokens before it launches the next
    activation_share     of the traffic that an eager block has beside its products
    mixes                tenants share one batch; else each tenant's step reads the base again
    """

    seconds_per_kernel: float
    block_kernels: float
    adapter_kernels: float
    dequantise_kernels: float
    waits: bool
    activation_share: float
    mixes: bool = True

    def host_seconds(self, *, adapted: bool, quantised: bool) -> float:
        """Per block and pass."""
        kernels = self.block_kernels + (self.adapter_kernels if adapted else 0.0)
        return self.seconds_per_kernel * (kernels + (self.dequantise_kernels if quantised else 0.0))


FUSED = Engine(2.2e-5, 18.5, 0, 0, waits=True, activation_share=0.3)
"""ONNX Runtime, with adapter and 4-bit weights within this project's op: nodes of a block, counted;
seconds of two cores to start and join one, of SmolLM2-135M in nf4 at 36 tokens a second, measured.
"""
CAPTURED = Engine(2e-6, 20, 8, 28, waits=True, activation_share=0.3)
"""Graphs of kernels launched as one, 4-bit bases dequantised apart; times assumed."""
EAGER = Engine(KERNEL_SECONDS, EAGER_KERNELS, 8, 28, waits=False, activation_share=1.0)
"""PyTorch, operation by operation."""
EAGER_SERVER = EAGER._replace(block_kernels=20, waits=True, activation_share=0.3)
"""The same with fused norms and activations, under a scheduler that waits for each step."""
ENGINES = {
    "paretune": FUSED,
    "onnxruntime": FUSED,
    "onnxruntime-genai": FUSED._replace(adapter_kernels=8, mixes=False),
    "llama.cpp": CAPTURED._replace(dequantise_kernels=0, mixes=False),
    "vllm": CAPTURED,
    "lorax": CAPTURED,
}


class Work(NamedTuple):
    """Operations by arithmetic, bytes by kind, and seconds of the host; numbers or columns."""

    flops: float
    bytes_moved: float
    adapter_flops: float = 0.0
    fast_flops: float = 0.0
    traffic_bytes: float = 0.0
    link_bytes: float = 0.0
    host_seconds: float = 0.0
    waits: bool = True

    def then(self, other: "Work") -> "Work":
        """Both, one after the other, of one engine."""
        return self._replace(
            flops=self.flops + other.flops,
            bytes_moved=self.bytes_moved + other.bytes_moved,
            fast_flops=self.fast_flops + other.fast_flops,
            traffic_bytes=self.traffic_bytes + other.traffic_bytes,
            host_seconds=self.host_seconds + other.host_seconds,
        )

    def seconds(self, device: Hardware, compute: str) -> float | None:
        """None where the device's figures are unknown."""
        rates = reached(device, compute)
        if rates is None:
            return None
        busy = self._busy_seconds(rates)
        return busy + self.host_seconds if self.waits else larger(busy, self.host_seconds)

    def _busy_seconds(self, rates: Rates) -> float:
        """Of the device; its host's come on top or run beside it."""
        arithmetic = self.flops / rates.compute + self.adapter_flops / rates.adapter
        arithmetic = arithmetic + self.fast_flops / rates.fast
        products = larger(arithmetic, self.bytes_moved / rates.bandwidth)
        return products + self.traffic_bytes / rates.bandwidth + self.link_bytes / rates.link

    def constants(self, device: Hardware, compute: str) -> tuple[str, ...]:
        """What its seconds rest on that is not of the device, measured or from a data sheet."""
        rates = reached(device, compute)
        if rates is None:
            return ()
        waited = self.waits or self.host_seconds > self._busy_seconds(rates)
        named = {
            f"int8 activations at {FAST_SPEEDUP:g} x fp32": self.fast_flops
            and not device.int8_tops,
            f"rows fetched at {rates.link / 1e9:g} GB/s": self.link_bytes,
            "the host's seconds per kernel": waited and self.host_seconds,
        }
        return tuple(name for name, used in named.items() if used)


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
    """One decoding step of all active tenants in one batch, at half the context."""
    rows = load.sequences
    work = _decoding(shape, served, load, adapter.input_tokens + adapter.cache_tokens)
    adapted = rows * writing(shape).share
    return work._replace(
        adapter_flops=_adapter_flops(adapter, served, adapted),
        traffic_bytes=work.traffic_bytes + adapted * _carried(adapter, served, load),
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
    work = _pass(shape, writing(shape), served, load, rows)
    streamed = work.bytes_moved + _unformatted_bytes(shape, load)
    if not shape.tied:
        # The embedding is looked up, not streamed.
        streamed = streamed - shape.vocab * shape.hidden * load.other_bytes
    if served.export == "merged" or not served.engine.mixes:
        # Each tenant has its own weights, or its own batch, so nothing is shared.
        streamed = streamed * rows
    context = load.context_length / 2 + learned_tokens
    if shape.kind == "encoder_decoder":
        # All of what was read, and half of what will be written.
        context += load.prompt_tokens / 2
    cached = cache_bytes(shape, load, context)
    return work._replace(
        flops=work.flops + rows * 2.0 * shape.vocab * shape.hidden,
        bytes_moved=streamed,
        traffic_bytes=work.traffic_bytes + rows * cached,
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
    attention: str = "flash",
    optimizer: str = "adamw",
    trained: float | None = None,
    trained_bytes: float = 4.0,
    cast_bytes: float = 0.0,
) -> Work:
    """`tokens` of `micro_batches` and one update of `trained` numbers.

    `passes` counts forward-equivalents over the base: 2 frozen, 3 trained, +1 recomputed, of which
    `recomputes` says how many. The adapter costs three whatever the base: forward, and the
    gradients of x and of itself. `trained` defaults to the adapter's own; `cast_bytes` are read and
    written for each of them in a micro-batch where the arithmetic has another type.
    """
    updated = adapter.trainable_parameters if trained is None else trained
    element = COMPUTE_BYTES[compute]
    length = where(sequence_length > 0, sequence_length, 1.0)
    added = where(sequence_length > 0, adapter.input_tokens, 0.0)
    all_tokens = tokens * adapter.forward_passes * (1.0 + added / length)
    base = 2.0 * (shape.active_linear_parameters + shape.vocab * shape.hidden)
    scores = sequence_length * _score_flops(shape, attention)
    own_passes = 2.0 * (3.0 + recomputes)
    own = tokens * adapter.multiplications + micro_batches * adapter.pass_multiplications
    walks = 1.0 + BACKWARD_TRAFFIC + recomputes
    written = sequence_length * _score_bytes(shape, attention, element)
    moved = (
        walks * (_blocks(shape) * _activation_bytes(shape, element) + written)
        + LOGIT_TRAFFIC_BYTES * shape.vocab
    )
    kept = SAVED_TRAFFIC_BYTES * (
        tokens * adapter.saved_elements + micro_batches * adapter.pass_elements
    )
    converted = (2.0 + recomputes) * micro_batches * _converted_bytes(shape, format_, compute)
    return Work(
        flops=all_tokens * passes * (base + scores),
        bytes_moved=passes * micro_batches * element * shape.linear_parameters,
        adapter_flops=own_passes * own,
        traffic_bytes=all_tokens * moved
        + kept
        + converted
        + (micro_batches * cast_bytes + _update_bytes(optimizer, trained_bytes)) * updated,
        host_seconds=micro_batches
        * _blocks(shape)
        * EAGER.host_seconds(adapted=True, quantised=format_.startswith("nf4"))
        * (1.0 + BACKWARD_HOST + recomputes),
        waits=False,
    )


def cost_usd(seconds: float | None, device: Hardware) -> float | None:
    """At the device's price by the hour; None where either is unknown."""
    if seconds is None or device.price_per_hour_usd is None:
        return None
    return seconds / 3600.0 * device.price_per_hour_usd


def _pass(shape: Architecture, stack: Stack, served: Served, load: Load, tokens: float) -> Work:
    """What one forward pass over `tokens` has in common, as prompt or as batch."""
    unmerged = served.export == "unmerged"
    engine, fast = served.engine, served.precision == "fast"
    quantised = served.format == "nf4"
    products = 2.0 * tokens * stack.active
    element = load.other_bytes
    traffic = tokens * engine.activation_share * stack.blocks * _activation_bytes(shape, element)
    if quantised and engine.dequantise_kernels:
        # Written in the arithmetic's type, and read again by the product.
        traffic = traffic + stack.linears * 2.0 * element
    return Work(
        flops=(0.0 if fast else products)
        + (DEQUANTISE_FLOPS * stack.linears if quantised else 0.0),
        bytes_moved=stack.linears * BITS_PER_WEIGHT[served.format] / 8
        - _untouched_bytes(shape, served.format, tokens),
        fast_flops=products if fast else 0.0,
        traffic_bytes=traffic,
        host_seconds=stack.blocks * engine.host_seconds(adapted=unmerged, quantised=quantised),
        waits=engine.waits,
    )


def _unformatted_bytes(shape: Architecture, load: Load) -> float:
    """Of embeddings, head, norms and biases."""
    return (shape.parameters - shape.linear_parameters) * load.other_bytes


def _blocks(shape: Architecture) -> int:
    return shape.layers + shape.encoder_layers


def _update_bytes(optimizer: str, trained_bytes: float) -> float:
    """Read and written per trained number by clipping and one update."""
    passes = UPDATE_PASSES.get(optimizer, ADAMW_PASSES)
    return passes * trained_bytes + STATE_TRAFFIC_BYTES.get(optimizer, 0.0)


def _attentions(shape: Architecture) -> int:
    """Of all blocks; a decoder with an encoder has two in each of its own."""
    return _blocks(shape) + (shape.layers if shape.kind == "encoder_decoder" else 0)


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


def _activation_bytes(shape: Architecture, element: int) -> float:
    """Read and written per token by the operations of a block beside the products, forward."""
    rotated = (shape.heads + shape.kv_heads) * shape.head_dim
    if shape.position != "rotary":
        rotated = 0
    passes = GATED_PASSES if shape.gated else UNGATED_PASSES
    elements = RESIDUAL_PASSES * shape.hidden + ROTATION_PASSES * rotated
    elements += passes * shape.active_intermediate
    return 2 * NORM_BYTES * shape.hidden + elements * element


def _converted_bytes(shape: Architecture, format_: str, compute: str) -> float:
    """Read and written to have every linear's weight once in the arithmetic's type."""
    if format_ == compute:
        return 0.0
    element = COMPUTE_BYTES[compute]
    return shape.linear_parameters * (BITS_PER_WEIGHT[format_] / 8 + 2.0 * element)


def _untouched_bytes(shape: Architecture, format_: str, tokens: float) -> float:
    """Of the experts that none of the tokens is routed to, where routes are even."""
    if not shape.experts:
        return 0.0
    routed = shape.idle_parameters * shape.experts / (shape.experts - shape.experts_per_token)
    missed: float = (1.0 - shape.experts_per_token / shape.experts) ** tokens
    return routed * missed * BITS_PER_WEIGHT[format_] / 8


def _adapter_flops(adapter: AdapterCost, served: Served, tokens: float) -> float:
    return 2.0 * tokens * adapter.served_multiplications if served.export == "unmerged" else 0.0


def _carried(adapter: AdapterCost, served: Served, load: Load) -> float:
    """Bytes of a tenant's row that a sequence gathers."""
    return row_bytes(adapter, load) if served.export == "unmerged" else 0.0
