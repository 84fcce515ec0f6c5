"""What the allocator and the device hold beyond allocated bytes: an estimate, of assumed shares.

A caching allocator asks the device for segments of whole 2 MiB and keeps what is freed. Blocks
that fit no later request lie idle; how many depends on the order of sizes, which no formula knows.
The device's context, its libraries' handles and workspaces are outside the allocator.
"""

from typing import NamedTuple

from planner.cost.elementwise import larger
from planner.cost.training import TrainingMemory

GIB = 2**30
SEGMENT_BYTES = 2 * 2**20
"""Unit of large requests to the device (PyTorch, c10/cuda/CUDACachingAllocator)."""
IDLE_SHARE = {"gpu": 0.06, "cpu": 0.03}
"""Of what lives during a pass, cached where nothing fits; assumed."""
CONTEXT_BYTES = {"gpu": 0.6 * GIB, "cpu": 0.5 * GIB}
"""Of the device before the first tensor: context and libraries; assumed."""


class Reserved(NamedTuple):
    """`reserved_bytes` by the allocator, `context_bytes` outside it."""

    reserved_bytes: float
    context_bytes: float

    @property
    def device_bytes(self) -> float:
        return self.reserved_bytes + self.context_bytes


def reserved(memory: TrainingMemory, kind: str) -> Reserved:
    """Of a training step on a device of that kind, "gpu" or "cpu"."""
    held = memory.peak_allocated_bytes + IDLE_SHARE[kind] * larger(memory.live_bytes, 0.0)
    return Reserved(-(-held // SEGMENT_BYTES) * SEGMENT_BYTES, CONTEXT_BYTES[kind])
