"""The peak of a training step without weights and without the device: the dry run.

config -> captured at a few depths -> the passes of a build -> one watched step each -> the peak
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
