"""A candidate's numbers and the constraints it breaks."""

from collections.abc import Sequence
from typing import NamedTuple

from planner.candidates import Adapter, Form, Refusal, adapters, forms, quality
from planner.cost.latency import Served, first_token, per_token, training_step
from planner.cost.memory import (
    Load,
    ServingMemory,
    Step,
    TrainingMemory,
    serving_memory,
    training_memory,
)
from planner.quality import Quality
from planner.resolve import GIB, Scenario, lacks_bf16
from planner.runtime import RUNTIMES
from planner.spec import Hardware

RESERVED_BYTES = {"gpu": 0.6 * GIB, "cpu": 0.5 * GIB}
"""Of the device before the first tensor: context and libraries; assumed."""
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


class Violation(NamedTuple):
    """The constraint, the number and the limit, in the unit."""

    constraint: str
    number: float
    limit: float
    unit: str


class Evaluated(NamedTuple):
    """One candidate; bytes, seconds, points."""

    adapter: Adapter
    form: Form
    micro: Micro
    compute: str
    optimizer: str
    quality: Quality
    serving: ServingMemory
    serving_required_bytes: float
    first_token_seconds: float | None
    per_token_seconds: float | None
    storage_bytes: float
    violations: tuple[Violation, ...]

    def describe(self) -> str:
        return f"{self.adapter.describe()}, {self.form.describe()}"


class Search(NamedTuple):
    """Everything that was weighed: feasible and infeasible candidates, and what was refused."""

    candidates: tuple[Evaluated, ...]
    refusals: tuple[Refusal, ...]

    @property
    def feasible(self) -> tuple[Evaluated, ...]:
        return tuple(c for c in self.candidates if not c.violations)


def search(scenario: Scenario) -> Search:
    """Evaluate every candidate; of the ways to cut a step only the best is kept."""
    found: list[Evaluated] = []
    refusals: dict[Refusal, None] = {}
    for adapter in adapters(scenario):
        if isinstance(adapter, Refusal):
            refusals[adapter] = None
            continue
        best: dict[str, Micro] = {}
        for form in forms(scenario, adapter):
            if isinstance(form, Refusal):
                refusals[form] = None
                continue
            if form.format not in best:
                best[form.format] = _best_micro(scenario, adapter, form.format)
            found.append(evaluate(scenario, adapter, form, best[form.format]))
    return Search(tuple(found), tuple(refusals))


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


def _best_micro(scenario: Scenario, adapter: Adapter, format_: str) -> Micro:
    """The fastest way to cut a step that fits; else the one that needs least."""
    tried: list[Micro] = []
    for mode, sizes in cuts(scenario):
        found = _largest(scenario, adapter, format_, mode, sizes)
        tried += found
        if found[-1].required_bytes <= scenario.training_budget_bytes:
            # What could be saved at most is shown beside what is used.
            last, least = cuts(scenario)[-1]
            tried.append(_micro(scenario, adapter, format_, last, least[-1]))
            thriftiest = min(m.required_bytes for m in tried)
            return found[-1]._replace(least_required_bytes=thriftiest)
    best = min(tried, key=lambda m: m.required_bytes)
    return best._replace(least_required_bytes=best.required_bytes)


def _largest(
    scenario: Scenario, adapter: Adapter, format_: str, mode: str, sizes: Sequence[int]
) -> list[Micro]:
    """What was tried; the last is the largest batch that fits, or else the smallest one.

    Memory rises with the batch size, except that the whole batch at once keeps no gradients
    between its pieces; so that is tried first, and the rest by halves.
    """
    tried = [_micro(scenario, adapter, format_, mode, sizes[0])]
    low, high = 1, len(sizes) - 1
    if tried[0].required_bytes <= scenario.training_budget_bytes or high == 0:
        return tried
    tried.append(_micro(scenario, adapter, format_, mode, sizes[high]))
    if tried[-1].required_bytes > scenario.training_budget_bytes:
        return tried
    best = tried[-1]
    while low < high:
        middle = (low + high) // 2
        tried.append(_micro(scenario, adapter, format_, mode, sizes[middle]))
        if tried[-1].required_bytes <= scenario.training_budget_bytes:
            best, high = tried[-1], middle
        else:
            low = middle + 1
    return [*tried, best]


def _micro(scenario: Scenario, adapter: Adapter, format_: str, mode: str, batch: int) -> Micro:
    repeats = accumulation(scenario, batch)
    compute = compute_of(scenario)
    step = Step(
        method=adapter.method,
        format=format_,
        compute=compute,
        optimizer=optimizer_of(scenario, adapter),
        batch_size=batch,
        sequence_length=scenario.sequence_length,
        checkpointing=mode,
        accumulates=repeats > 1,
        causal=scenario.causal,
        labels=scenario.labels,
    )
    memory = training_memory(scenario.architecture, adapter.cost, step)
    passes = (3.0 if adapter.method.trains_base else 2.0) + (mode == "block")
    # Batches are padded to their own longest example, about twice the mean.
    tokens = batch * repeats * min(scenario.sequence_length, 2 * scenario.mean_tokens)
    work = training_step(scenario.architecture, adapter.cost, tokens, passes)
    return Micro(
        batch_size=batch,
        gradient_accumulation=repeats,
        checkpointing=mode,
        memory=memory,
        required_bytes=required(
            memory.peak_allocated_bytes, memory.half_width_bytes, scenario.training
        ),
        step_seconds=work.seconds(scenario.training, compute),
    )


def required(predicted_bytes: float, half_width_bytes: float, device: Hardware) -> float:
    """What must be free: the top of the band, and what the device keeps for itself."""
    return predicted_bytes + half_width_bytes + RESERVED_BYTES[device.kind]


def evaluate(scenario: Scenario, adapter: Adapter, form: Form, micro: Micro) -> Evaluated:
    shape = scenario.architecture
    load = load_of(scenario)
    served = Served(form.format, form.export, form.precision)
    serving = serving_memory(shape, adapter.cost, form.format, form.export, load)
    device = scenario.serving
    arithmetic = serving_compute(scenario)
    reply = first_token(shape, adapter.cost, served, load).seconds(device, arithmetic)
    decode = per_token(shape, adapter.cost, served, load).seconds(device, arithmetic)
    needed = required(serving.total_bytes, serving.half_width_bytes, device)
    decode = decode if scenario.causal else None
    return Evaluated(
        adapter=adapter,
        form=form,
        micro=micro,
        compute=compute_of(scenario),
        optimizer=optimizer_of(scenario, adapter),
        quality=quality(scenario, adapter, form),
        serving=serving,
        serving_required_bytes=needed,
        first_token_seconds=reply,
        per_token_seconds=decode,
        storage_bytes=_storage_bytes(scenario, adapter, form, serving),
        violations=_violations(scenario, micro.required_bytes, needed, reply, decode),
    )


def serving_compute(scenario: Scenario) -> str:
    wanted = RUNTIMES[scenario.spec.serving.runtime].compute
    return wanted if scenario.serving.bf16_tflops is not None else "fp32"


def load_of(scenario: Scenario) -> Load:
    limits = RUNTIMES[scenario.spec.serving.runtime]
    return Load(
        sequences=scenario.active_tenants,
        context_length=scenario.context_length,
        prompt_tokens=scenario.prompt_tokens,
        causal=scenario.causal,
        cache_element_bytes=limits.cache_element_bytes,
        other_bytes=limits.other_bytes,
    )


def _storage_bytes(
    scenario: Scenario, adapter: Adapter, form: Form, serving: ServingMemory
) -> float:
    """On disk for all tenants: adapters beside one base, or a whole model each."""
    one_base = serving.weights_bytes
    if form.export == "merged":
        return one_base / scenario.active_tenants * scenario.tenants
    return one_base + scenario.tenants * adapter.cost.stored_bytes + adapter.cost.shared_bytes


def _violations(
    scenario: Scenario,
    training_bytes: float,
    serving_bytes: float,
    reply: float | None,
    decode: float | None,
) -> tuple[Violation, ...]:
    checks = (
        ("training memory", training_bytes, scenario.training_budget_bytes, "bytes"),
        ("serving memory", serving_bytes, scenario.serving_budget_bytes, "bytes"),
        ("first token", reply, scenario.first_token_seconds, "seconds"),
        ("per token", decode, scenario.per_token_seconds, "seconds"),
    )
    return tuple(
        Violation(name, number, limit, unit)
        for name, number, limit, unit in checks
        if number is not None and limit is not None and number > limit
    )
