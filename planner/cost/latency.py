"""Rooflines: seconds = max(flops / achieved rate, bytes / achieved bandwidth)."""

from typing import NamedTuple

from planner.architecture import Architecture
from planner.cost.adapter import AdapterCost
from planner.cost.elementwise import larger
from planner.cost.memory import Load, cache_bytes, weights_bytes
from planner.spec import Hardware

COMPUTE_FRACTION = 0.5
"""Of the peak, reached by dense products; assumed. Two CPU cores reached 0.56 of theirs training
SmolLM2-135M in fp32 (4 x 256 tokens in 5.4 s)."""
BANDWIDTH_FRACTION = 0.7
"""Of the peak, reached when weights are streamed; assumed."""
DEQUANTISE_FLOPS = 2.0
"""Per 4-bit weight and pass: look up the code, multiply by its block's scale."""
TIME_BAND = 0.4
"""Half-width of a predicted time, as a share: the achieved fractions are assumed."""
FAST_SPEEDUP = 2.0
"""Products with int8 activations against fp32; assumed."""


class Work(NamedTuple):
    flops: float
    bytes_moved: float

    def seconds(self, device: Hardware, compute: str) -> float | None:
        """None where the device's figures are unknown."""
        peak = device.bf16_tflops if compute == "bf16" else device.fp32_tflops
        if peak is None or device.bandwidth_gb_per_second is None:
            return None
        arithmetic = self.flops / (peak * 1e12 * COMPUTE_FRACTION)
        traffic = self.bytes_moved / (device.bandwidth_gb_per_second * 1e9 * BANDWIDTH_FRACTION)
        return larger(arithmetic, traffic)


class Served(NamedTuple):
    """How the base is stored and the adapter is carried."""

    format: str
    export: str
    precision: str


def first_token(shape: Architecture, adapter: AdapterCost, served: Served, load: Load) -> Work:
    """One prompt of one tenant, and its first token or its label."""
    tokens = load.prompt_tokens
    scores = 4.0 * shape.layers * tokens * tokens * shape.heads * shape.head_dim
    head = 2.0 * shape.vocab * shape.hidden if load.causal else 0.0
    flops = tokens * _block_flops(shape, adapter, served) + _dequantise(shape, served)
    moved = weights_bytes(shape, served.format, load.other_bytes) + _carried(adapter, served)
    return Work(flops + scores + head, moved)


def per_token(shape: Architecture, adapter: AdapterCost, served: Served, load: Load) -> Work:
    """One decoding step of all active tenants in one batch, at half the context."""
    rows = load.sequences
    head = 2.0 * shape.vocab * shape.hidden
    flops = rows * (_block_flops(shape, adapter, served) + head) + _dequantise(shape, served)
    streamed = weights_bytes(shape, served.format, load.other_bytes)
    if not shape.tied:
        # The embedding is looked up, not streamed.
        streamed -= shape.vocab * shape.hidden * load.other_bytes
    if served.export == "merged":
        # Each tenant has its own weights, so a batch shares nothing.
        streamed *= rows
    cache = rows * cache_bytes(shape, load) / 2
    return Work(flops, streamed + cache + rows * _carried(adapter, served))


def training_step(shape: Architecture, adapter: AdapterCost, tokens: int, passes: float) -> Work:
    """`passes` counts forward-equivalents over the base: 2 frozen, 3 trained, +1 recomputed.

    The adapter costs three whatever the base: forward, and the gradients of x and of itself.
    """
    base = 2.0 * (shape.linear_parameters + shape.vocab * shape.hidden)
    own = 2.0 * adapter.multiplications
    return Work(tokens * (passes * base + (passes + 1.0) * own), 0.0)


def _block_flops(shape: Architecture, adapter: AdapterCost, served: Served) -> float:
    """Per token, in fp32-equivalent operations."""
    base = 2.0 * shape.linear_parameters
    if served.precision == "fast":
        base /= FAST_SPEEDUP
    own = 2.0 * adapter.multiplications if served.export == "unmerged" else 0.0
    return base + own


def _dequantise(shape: Architecture, served: Served) -> float:
    return DEQUANTISE_FLOPS * shape.linear_parameters if served.format == "nf4" else 0.0


def _carried(adapter: AdapterCost, served: Served) -> float:
    return adapter.row_bytes if served.export == "unmerged" else 0.0
