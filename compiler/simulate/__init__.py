"""The peak of a training step without weights and without the device: the dry run.

config -> captured at a few depths -> the passes of a build -> one watched step each -> the peak

It is that of a real step watched in the same way, byte for byte, but that layer norms on a CPU keep
their statistics in bf16, on the meta device as on CUDA in fp32. Autograd adds gradients out of
place while it is watched: a peak in the backward pass is at most one [tokens, hidden] too high.
Not counted, since they are no tensors: CUDA's context and cuBLAS's workspace.
"""

from compiler.simulate.dry_run import (
    Captured,
    Simulation,
    at_full_depth,
    capture_depths,
    dry_run,
    simulate,
    training_graphs,
)

__all__ = [
    "Captured",
    "Simulation",
    "at_full_depth",
    "capture_depths",
    "dry_run",
    "simulate",
    "training_graphs",
]
