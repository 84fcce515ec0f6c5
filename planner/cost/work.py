"""What a pass has to do, and how long that takes a device under an engine.

    device = max(operations / rate, weights / bandwidth) + other traffic / bandwidth
    time   = device + host, or the larger of the two where the host works ahead

Traffic beside the products is counted from the operations of an eager transformer block: what its
norms, residuals, rotations and activations read and write.
"""

from typing import NamedTuple

from planner.architecture import Architecture
from planner.cost.elementwise import larger
from planner.cost.rates import FAST_SPEEDUP, Rates, reached
from planner.spec import Hardware

TIME_BAND = 0.4
"""Half-width of a predicted time, as a share, unless builds on the machine have taught another."""

NORM_BYTES = 30.0
"""Read and written per element by an eager norm: to fp32, square, mean, scale, weight, back."""
RESIDUAL_PASSES, ROTATION_PASSES, GATED_PASSES, UNGATED_PASSES = 6.0, 11.0, 5.0, 2.0
"""Reads and writes of an element by two additions, by a rotation, by an MLP's activation."""

EAGER_KERNELS = 45.0
"""That an eager block launches, forward: its products, norms, rotations, attention, activations."""
KERNEL_SECONDS = 2.2e-5
"""Of the host to launch one: LitGPT decodes Llama-2 at 1.0 ms a block and token; published."""


class Engine(NamedTuple):
    """What a runtime adds to arithmetic.

    seconds_per_kernel   of the host, to launch it
    block_kernels        launched for a block of one pass
    adapter_kernels      for the adapters' products beside it
    dequantise_kernels   for its 4-bit weights, where they are not dequantised within the product
    waits                the host needs a step's tokens before it launches the next
    activation_share     of the traffic that an eager block has beside its products
    mixes                tenants share one batch; else each tenant's step is a pass of its own
    groups               sequences of one tenant share the reading of its row; else each reads it
    """

    seconds_per_kernel: float
    block_kernels: float
    adapter_kernels: float
    dequantise_kernels: float
    waits: bool
    activation_share: float
    mixes: bool = True
    groups: bool = False

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
    # Its kernels sort a batch's tokens by adapter (vllm/lora/ops/triton_ops/lora_shrink_op.py).
    "vllm": CAPTURED._replace(groups=True),
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


def cost_usd(seconds: float | None, device: Hardware) -> float | None:
    """At the device's price by the hour; None where either is unknown."""
    if seconds is None or device.price_per_hour_usd is None:
        return None
    return seconds / 3600.0 * device.price_per_hour_usd


def activation_bytes(shape: Architecture, element: int) -> float:
    """Read and written per token by the operations of a block beside the products, forward."""
    rotated = (shape.heads + shape.kv_heads) * shape.head_dim
    if shape.position != "rotary":
        rotated = 0
    passes = GATED_PASSES if shape.gated else UNGATED_PASSES
    elements = RESIDUAL_PASSES * shape.hidden + ROTATION_PASSES * rotated
    elements += passes * shape.active_intermediate
    return 2 * NORM_BYTES * shape.hidden + elements * element
