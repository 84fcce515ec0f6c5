"""What a build took, beside what its plan predicted; kept for `planner calibrate --from-builds`."""

from collections.abc import Callable, Sequence

import torch

from compiler.train import Trained
from planner.calibration import this_machine
from planner.calibration_builds import hardware_key
from planner.errors import ParetuneError
from planner.plan import Plan
from planner.store import Build, append


def record(plan: Plan, trained: Sequence[Trained], say: Callable[[str], None]) -> None:
    """Append every tenant trained by this process from its first step to its last.

    The artifact is already there, so a store that cannot be written is said and no error.
    """
    builds = [build for run in trained for build in measured(plan, run)]
    if not builds:
        return
    try:
        append(builds)
    except ParetuneError as error:
        say(f"what this build took is not recorded: {error}")


def measured(plan: Plan, trained: Trained) -> list[Build]:
    """Quantities that were predicted for the plan's device and measured; none of a resumed run.

    The whole time is held against as many predicted steps as there were: the plan may have been
    shortened since it was made.
    """
    hardware = hardware_key(plan.spec.training.hardware)
    if hardware is None or trained.resumed:
        return []
    step = _predicted(plan, "training.step_seconds")
    pairs = {
        "training.step_seconds": (step, trained.step_seconds),
        "training.total_seconds": (step and step * trained.steps, trained.seconds),
    }
    if torch.cuda.is_available():
        # Of the CPU's allocator nothing is known; its process holds more than tensors.
        peak = _predicted(plan, "training.peak_allocated_bytes")
        pairs["training.peak_allocated_bytes"] = (peak, float(trained.peak_bytes))
    processor = this_machine().processor
    return [
        Build(processor, hardware, plan.candidate.method, name, predicted, found)
        for name, (predicted, found) in pairs.items()
        if predicted and found
    ]


def _predicted(plan: Plan, name: str) -> float | None:
    """The figure before any correction: else a correction would be learned upon itself."""
    place, _, key = name.rpartition(".")
    figure = plan.figures.get(f"{place}.uncorrected_{key}", plan.figures.get(name))
    return None if figure is None else figure.value
