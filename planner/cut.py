"""One optimizer step cut into micro-batches, and the fastest way to do so that fits."""

from functools import lru_cache
from typing import NamedTuple

from planner.adapters import Adapter
from planner.cost.activations import blocks
from planner.cost.adapter import AdapterCost
from planner.cost.memory import Step, TrainingMemory, training_memory
from planner.cost.reserved import CONTEXT_BYTES
from planner.cost.training_time import training_step
from planner.cost.work import Work
from planner.scenario import Scenario, lacks_bf16
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
    work: Work

    @property
    def examples(self) -> int:
        """Of one optimizer step."""
        return self.batch_size * self.gradient_accumulation


class Recipe(NamedTuple):
    """What a step is besides its cut and what its adapter costs."""

    trains_base: bool
    optimizer: str
    format: str


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
    return _best_micro(scenario, adapter.cost, _recipe(scenario, adapter, format_))


def least_required_bytes(scenario: Scenario, adapter: Adapter, format_: str) -> float:
    """What the thriftiest way to cut a step needs.

    In two blocks or more, recomputing them never takes more than keeping them.
    """
    return _least_required_bytes(scenario, adapter.cost, _recipe(scenario, adapter, format_))


def _recipe(scenario: Scenario, adapter: Adapter, format_: str) -> Recipe:
    return Recipe(adapter.method.trains_base, optimizer_of(scenario, adapter), format_)


@lru_cache(maxsize=4096)
def _least_required_bytes(scenario: Scenario, cost: AdapterCost, recipe: Recipe) -> float:
    shape, ways = scenario.architecture, _steps(scenario, recipe)
    if "block" in ways and blocks(shape) > 1:
        ways = {"block": ways["block"]}
    return min(_thriftiest_bytes(scenario, cost, steps) for steps in ways.values())


def _thriftiest_bytes(scenario: Scenario, cost: AdapterCost, steps: tuple[Step, ...]) -> float:
    """Memory rises with the batch size, except that the whole batch at once keeps no gradients
    between its pieces: more than its blocks' inputs, or it does not pay.
    """
    largest, smallest = steps[0], steps[-1]
    memory = training_memory(scenario.architecture, cost, smallest)
    needed = _required(scenario, memory)
    shape, tokens = scenario.architecture, largest.tokens - smallest.tokens
    inputs = tokens * blocks(shape) * shape.hidden * largest.element
    if memory.gradients_bytes <= inputs:
        return needed
    return min(needed, _needs(scenario, cost, largest))


@lru_cache(maxsize=4096)
def _best_micro(scenario: Scenario, cost: AdapterCost, recipe: Recipe) -> Micro:
    ways = _steps(scenario, recipe)
    micros: list[Micro] = []
    for steps in ways.values():
        fitting = (s for s in steps if _needs(scenario, cost, s) <= scenario.training_budget_bytes)
        found = next(fitting, None)
        if found is not None:
            micros.append(cost_of(scenario, cost, found))
        if found is steps[0]:
            # Recomputing, or smaller pieces, would only add work.
            break
    if micros:
        return min(micros, key=lambda found: found.step_seconds or 0.0)
    thriftiest = min(
        (step for steps in ways.values() for step in (steps[-1], steps[0])),
        key=lambda step: _needs(scenario, cost, step),
    )
    return cost_of(scenario, cost, thriftiest)


@lru_cache(maxsize=4096)
def _steps(scenario: Scenario, recipe: Recipe) -> dict[str, tuple[Step, ...]]:
    """The steps to try by mode, the fastest first."""
    return {
        mode: tuple(_step(scenario, recipe, mode, size) for size in sizes)
        for mode, sizes in cuts(scenario)
    }


def _needs(scenario: Scenario, cost: AdapterCost, step: Step) -> float:
    return _required(scenario, training_memory(scenario.architecture, cost, step))


def _required(scenario: Scenario, memory: TrainingMemory) -> float:
    return required(memory.peak_allocated_bytes, memory.half_width_bytes, scenario.training)


def step_of(scenario: Scenario, adapter: Adapter, format_: str, mode: str, batch: int) -> Step:
    """The step as the compiler makes it."""
    return _step(scenario, _recipe(scenario, adapter, format_), mode, batch)


def _step(scenario: Scenario, recipe: Recipe, mode: str, batch: int) -> Step:
    return Step(
        trains_base=recipe.trains_base,
        format=recipe.format,
        compute=compute_of(scenario),
        optimizer=recipe.optimizer,
        batch_size=batch,
        sequence_length=scenario.sequence_length,
        checkpointing=mode,
        accumulates=accumulation(scenario, batch) > 1,
        causal=scenario.causal,
        labels=scenario.labels,
    )


def cost_of(scenario: Scenario, cost: AdapterCost, step: Step) -> Micro:
    """What that step costs with an adapter's `cost`, which may be of columns."""
    shape, whole = scenario.architecture, step.trains_base
    memory = training_memory(shape, cost, step)
    recomputed = step.checkpointing == "block"
    repeats = accumulation(scenario, step.batch_size)
    length = scenario.row_tokens
    width = (step.program.master_bytes or step.element) if whole else step.adapter_element
    work = training_step(
        shape,
        cost,
        step.batch_size * repeats * length,
        (3.0 if whole else 2.0) + recomputed,
        micro_batches=repeats,
        sequence_length=length,
        recomputes=float(recomputed),
        format_=step.format,
        compute=step.compute,
        adapter_compute=step.adapter_compute,
        attention=step.attention,
        optimizer=step.optimizer,
        trained_bytes=width,
        # The number to the arithmetic's type, and its gradient back.
        cast_bytes=2.0 * (width + step.element) if whole and width != step.element else 0.0,
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
        work=work,
    )


def required(predicted_bytes: float, half_width_bytes: float, device: Hardware) -> float:
    """What must be free: the top of the band, and what the device keeps for itself."""
    return predicted_bytes + half_width_bytes + CONTEXT_BYTES[device.kind]
