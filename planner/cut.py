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


Hints = dict[tuple[str, str], int]
"""By format and mode, the place of the batch size that was the largest to fit the last adapter."""


class Tried(NamedTuple):
    needed: float
    mode: str
    size: int
    memory: TrainingMemory


def best_micro(scenario: Scenario, adapter: Adapter, format_: str, hints: Hints) -> Micro:
    """The fastest way to cut a step that fits; else the one that needs least.

    In each mode the largest batch that fits is the fastest; between modes the predicted time
    decides, and keeping activations comes first where that is unknown.
    """
    budget = scenario.training_budget_bytes
    tried: list[Tried] = []
    for mode, sizes in cuts(scenario):
        if any(each.needed <= budget and each.size == sizes[0] for each in tried):
            # The whole batch fits as it is; recomputing is only the thriftiest way.
            sizes = sizes[-1:]
        tried += _tried(scenario, adapter, format_, mode, sizes, hints)
    least = min(tried, key=lambda each: each.needed)
    largest = {each.mode: each for each in tried if each.needed <= budget}
    fitting = [_micro_of(scenario, adapter, format_, each) for each in largest.values()]
    best = (
        min(fitting, key=lambda found: found.step_seconds or 0.0)
        if fitting
        else _micro_of(scenario, adapter, format_, least)
    )
    return best._replace(least_required_bytes=least.needed)


def _tried(
    scenario: Scenario,
    adapter: Adapter,
    format_: str,
    mode: str,
    sizes: Sequence[int],
    hints: Hints,
) -> list[Tried]:
    """Ways to cut: the last that fits is the largest; the smallest is among them.

    Memory rises with the batch size, except that the whole batch at once keeps no gradients
    between its pieces; so that is tried apart, and the rest from where the last adapter ended, or
    by halves.
    """

    def attempt(place: int) -> Tried:
        step = step_of(scenario, adapter, format_, mode, sizes[place])
        memory = training_memory(scenario.architecture, adapter.cost, step)
        needed = required(memory.peak_allocated_bytes, memory.half_width_bytes, scenario.training)
        return Tried(needed, mode, sizes[place], memory)

    budget, low, high = scenario.training_budget_bytes, 1, len(sizes) - 1
    smallest = attempt(high)
    if high == 0:
        return [smallest]
    whole = attempt(0)
    if whole.needed <= budget or smallest.needed > budget:
        return [smallest, whole]
    tried = [whole, smallest]
    hint = hints.get((format_, mode), 0)
    if 1 < hint < high:
        above, at = attempt(hint - 1), attempt(hint)
        if above.needed > budget >= at.needed:
            return [*tried, above, at]
    while low < high:
        middle = (low + high) // 2
        tried.append(attempt(middle))
        if tried[-1].needed <= budget:
            high = middle
        else:
            low = middle + 1
    hints[format_, mode] = high
    return tried


def _micro_of(scenario: Scenario, adapter: Adapter, format_: str, tried: Tried) -> Micro:
    step = step_of(scenario, adapter, format_, tried.mode, tried.size)
    return cost_of(scenario, adapter, step, tried.memory)


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


def cost_of(
    scenario: Scenario, adapter: Adapter, step: Step, memory: TrainingMemory | None = None
) -> Micro:
    """What that step costs, whose `memory` may be known; costs of `adapter` may be columns."""
    if memory is None:
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
