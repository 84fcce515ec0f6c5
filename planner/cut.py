"""One optimizer step cut into micro-batches, and the fastest way to do so that fits."""

from collections.abc import Sequence
from typing import NamedTuple

from planner.candidates import Adapter
from planner.cost.latency import training_step
from planner.cost.memory import COMPUTE_BYTES, Step, TrainingMemory, training_memory
from planner.cost.reserved import CONTEXT_BYTES
from planner.resolve import Scenario, lacks_bf16
from planner.spec import Hardware

BATCHES = (64, 32, 16, 8, 4, 2, 1)


class Micro(NamedTuple):
    """How one optimizer step is cut into pieces, and what a piece costs."""

    batch_size: int
    gradient_accumulation: int
    checkpointing: str
    memory: TrainingMemory
    required_bytes: float
    step_seconds: float | None
    least_required_bytes: float = 0.0
    """Of the ways to cut the step, what the thriftiest needs."""


def compute_of(scenario: Scenario) -> str:
    """The arithmetic of training."""
    return scenario.spec.pinned.compute or ("fp32" if lacks_bf16(scenario.training) else "bf16")


def optimizer_of(scenario: Scenario, adapter: Adapter) -> str:
    """Pages of an optimizer need CUDA; elsewhere the plain one is used."""
    return adapter.method.optimizer if scenario.training.kind == "gpu" else "adamw"


def cuts(scenario: Scenario) -> list[tuple[str, list[int]]]:
    """Checkpointing and the batch sizes to try, the fastest first."""
    pinned, whole = scenario.spec.pinned, scenario.effective_batch
    modes = [pinned.checkpointing] if pinned.checkpointing else ["none", "block"]
    sizes = [pinned.batch_size] if pinned.batch_size else [s for s in BATCHES if s <= whole]
    return [(mode, sizes) for mode in modes]


def accumulation(scenario: Scenario, batch_size: int) -> int:
    """Micro-batches of one optimizer step."""
    return scenario.spec.pinned.gradient_accumulation or -(-scenario.effective_batch // batch_size)


def best_micro(scenario: Scenario, adapter: Adapter, format_: str) -> Micro:
    """The fastest way to cut a step that fits; else the one that needs least.

    In each mode the largest batch that fits is the fastest; between modes the predicted time
    decides, and keeping activations comes first where that is unknown.
    """
    budget = scenario.training_budget_bytes
    tried: list[tuple[float, str, int]] = []
    for mode, sizes in cuts(scenario):
        if any(needed <= budget and size == sizes[0] for needed, _, size in tried):
            # The whole batch fits as it is; recomputing is only the thriftiest way.
            sizes = sizes[-1:]
        found = _tried(scenario, adapter, format_, mode, sizes)
        tried += [(needed, mode, size) for needed, size in found]
    least_bytes, least_mode, least_size = min(tried)
    largest = {mode: size for needed, mode, size in tried if needed <= budget}
    fitting = [micro(scenario, adapter, format_, mode, size) for mode, size in largest.items()]
    best = (
        min(fitting, key=lambda found: found.step_seconds or 0.0)
        if fitting
        else micro(scenario, adapter, format_, least_mode, least_size)
    )
    return best._replace(least_required_bytes=least_bytes)


def _tried(
    scenario: Scenario, adapter: Adapter, format_: str, mode: str, sizes: Sequence[int]
) -> list[tuple[float, int]]:
    """Bytes and batch sizes: the last that fits is the largest; the smallest is among them.

    Memory rises with the batch size, except that the whole batch at once keeps no gradients
    between its pieces; so that is tried apart, and the rest by halves.
    """

    def attempt(size: int) -> tuple[float, int]:
        return _needed(scenario, adapter, format_, mode, size), size

    budget, low, high = scenario.training_budget_bytes, 1, len(sizes) - 1
    smallest = attempt(sizes[-1])
    if len(sizes) == 1:
        return [smallest]
    whole = attempt(sizes[0])
    if whole[0] <= budget or smallest[0] > budget:
        return [smallest, whole]
    tried = [whole, smallest]
    while low < high:
        middle = (low + high) // 2
        tried.append(attempt(sizes[middle]))
        if tried[-1][0] <= budget:
            high = middle
        else:
            low = middle + 1
    return tried


def _needed(scenario: Scenario, adapter: Adapter, format_: str, mode: str, batch: int) -> float:
    step = step_of(scenario, adapter, format_, mode, batch)
    memory = training_memory(scenario.architecture, adapter.cost, step)
    return required(memory.peak_allocated_bytes, memory.half_width_bytes, scenario.training)


def micro(scenario: Scenario, adapter: Adapter, format_: str, mode: str, batch: int) -> Micro:
    return cost_of(scenario, adapter, step_of(scenario, adapter, format_, mode, batch))


def step_of(scenario: Scenario, adapter: Adapter, format_: str, mode: str, batch: int) -> Step:
    """The step as the compiler makes it."""
    return Step(
        method=adapter.method,
        format=format_,
        compute=compute_of(scenario),
        optimizer=optimizer_of(scenario, adapter),
        batch_size=batch,
        sequence_length=scenario.sequence_length,
        checkpointing=mode,
        accumulates=accumulation(scenario, batch) > 1,
        causal=scenario.causal,
        labels=scenario.labels,
    )


def cost_of(scenario: Scenario, adapter: Adapter, step: Step) -> Micro:
    """What that step costs; the costs of `adapter` may be columns."""
    memory = training_memory(scenario.architecture, adapter.cost, step)
    recomputed = step.checkpointing == "block"
    passes = (3.0 if adapter.method.trains_base else 2.0) + recomputed
    repeats = accumulation(scenario, step.batch_size)
    # Batches are padded to their own longest example, about twice the mean.
    length = min(scenario.sequence_length, 2 * scenario.mean_tokens)
    tokens = step.batch_size * repeats * length
    whole = adapter.method.trains_base
    work = training_step(
        scenario.architecture,
        adapter.cost,
        tokens,
        passes,
        micro_batches=repeats,
        sequence_length=length,
        recomputes=float(recomputed),
        format_=step.format,
        compute=step.compute,
        trained_bytes=COMPUTE_BYTES[step.format] if whole else 4.0,
    )
    return Micro(
        batch_size=step.batch_size,
        gradient_accumulation=repeats,
        checkpointing=step.checkpointing,
        memory=memory,
        required_bytes=required(
            memory.peak_allocated_bytes, memory.half_width_bytes, scenario.training
        ),
        step_seconds=work.seconds(scenario.training, step.compute),
    )


def required(predicted_bytes: float, half_width_bytes: float, device: Hardware) -> float:
    """What must be free: the top of the band, and what the device keeps for itself."""
    return predicted_bytes + half_width_bytes + CONTEXT_BYTES[device.kind]
