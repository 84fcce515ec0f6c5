"""A candidate's numbers and the constraints it breaks."""

from collections.abc import Iterator
from typing import NamedTuple

from planner.candidates import Adapter, Form, Refusal, adapters, form_quality, forms
from planner.cost.latency import (
    ENGINES,
    Served,
    first_token,
    miss_rate,
    per_token,
    throughput,
)
from planner.cost.memory import Load, ServingMemory, serving_memory
from planner.cut import Hints, Micro, best_micro, compute_of, optimizer_of, required
from planner.quality import Quality
from planner.resolve import Scenario
from planner.runtime import RUNTIMES


class Violation(NamedTuple):
    """The constraint, the number and the limit, in the unit."""

    constraint: str
    number: float
    limit: float
    unit: str


class ServedCost(NamedTuple):
    """Bytes and seconds of serving."""

    memory: ServingMemory
    required_bytes: float
    first_token_seconds: float | None
    per_token_seconds: float | None
    tokens_per_second: float | None
    storage_bytes: float


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
    tokens_per_second: float | None
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


def search(scenario: Scenario, *, unbuildable: bool = False) -> Search:
    """Evaluate every candidate; of the ways to cut a step only the best is kept."""
    weighed = list(_weighed(scenario, unbuildable=unbuildable))
    return Search(
        candidates=tuple(each for each in weighed if isinstance(each, Evaluated)),
        refusals=tuple(dict.fromkeys(each for each in weighed if isinstance(each, Refusal))),
    )


def is_feasible(scenario: Scenario) -> bool:
    """Whether any candidate keeps every limit; ends with the first that does."""
    weighed = _weighed(scenario, unbuildable=False)
    return any(isinstance(each, Evaluated) and not each.violations for each in weighed)


def _weighed(scenario: Scenario, *, unbuildable: bool) -> Iterator[Evaluated | Refusal]:
    # LoRA, rsLoRA and LoRA+ cost the same, so what one of them needs is not asked again.
    best: dict[tuple[object, ...], Micro] = {}
    served: dict[tuple[object, ...], ServedCost] = {}
    hints: Hints = {}
    for adapter in adapters(scenario, unbuildable=unbuildable):
        if isinstance(adapter, Refusal):
            yield adapter
            continue
        alike = (adapter.cost, adapter.method.trains_base, optimizer_of(scenario, adapter))
        for form in forms(scenario, adapter):
            if isinstance(form, Refusal):
                yield form
                continue
            if (*alike, form.format) not in best:
                best[*alike, form.format] = best_micro(scenario, adapter, form.format, hints)
            if (*alike, form) not in served:
                served[*alike, form] = measure(scenario, adapter, form)
            found = best[*alike, form.format], served[*alike, form]
            yield _evaluated(scenario, adapter, form, *found)


def evaluate(scenario: Scenario, adapter: Adapter, form: Form, micro: Micro) -> Evaluated:
    return _evaluated(scenario, adapter, form, micro, measure(scenario, adapter, form))


def _evaluated(
    scenario: Scenario, adapter: Adapter, form: Form, micro: Micro, served: ServedCost
) -> Evaluated:
    return Evaluated(
        adapter=adapter,
        form=form,
        micro=micro,
        compute=compute_of(scenario),
        optimizer=optimizer_of(scenario, adapter),
        quality=adapter.quality + form_quality(scenario, form),
        serving=served.memory,
        serving_required_bytes=served.required_bytes,
        first_token_seconds=served.first_token_seconds,
        per_token_seconds=served.per_token_seconds,
        tokens_per_second=served.tokens_per_second,
        storage_bytes=served.storage_bytes,
        violations=_violations(scenario, micro.required_bytes, served),
    )


def measure(scenario: Scenario, adapter: Adapter, form: Form) -> ServedCost:
    """What serving that form costs; the costs of `adapter` may be columns."""
    shape, load, device = scenario.architecture, load_of(scenario), scenario.serving
    served = Served(
        form.format,
        form.export,
        form.precision,
        ENGINES[scenario.spec.serving.runtime],
        miss_rate(scenario.active_tenants, scenario.slots),
    )
    memory = serving_memory(shape, adapter.cost, form.format, form.export, load)
    arithmetic = serving_compute(scenario)
    prompt = first_token(shape, adapter.cost, served, load)
    step = per_token(shape, adapter.cost, served, load)
    answer = max(1, scenario.context_length - scenario.prompt_tokens)
    rate = throughput(prompt, step, load, answer, device, arithmetic)
    return ServedCost(
        memory=memory,
        required_bytes=required(memory.total_bytes, memory.half_width_bytes, device),
        first_token_seconds=prompt.seconds(device, arithmetic),
        per_token_seconds=step.seconds(device, arithmetic) if scenario.causal else None,
        tokens_per_second=rate.tokens_per_second if rate and scenario.causal else None,
        storage_bytes=_storage_bytes(scenario, adapter, form, memory),
    )


def serving_compute(scenario: Scenario) -> str:
    wanted = RUNTIMES[scenario.spec.serving.runtime].compute
    return wanted if scenario.serving.bf16_tflops is not None else "fp32"


def load_of(scenario: Scenario) -> Load:
    limits = RUNTIMES[scenario.spec.serving.runtime]
    return Load(
        # Only tenants with a row in the bank can be in one batch.
        sequences=scenario.slots,
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
        return one_base / scenario.slots * scenario.tenants
    return one_base + scenario.tenants * adapter.cost.stored_bytes + adapter.cost.shared_bytes


def _violations(
    scenario: Scenario, training_bytes: float, served: ServedCost
) -> tuple[Violation, ...]:
    checks = (
        ("training memory", training_bytes, scenario.training_budget_bytes, "bytes"),
        ("serving memory", served.required_bytes, scenario.serving_budget_bytes, "bytes"),
        ("first token", served.first_token_seconds, scenario.first_token_seconds, "seconds"),
        ("per token", served.per_token_seconds, scenario.per_token_seconds, "seconds"),
    )
    return tuple(
        Violation(name, number, limit, unit)
        for name, number, limit, unit in checks
        if number is not None and limit is not None and number > limit
    )
