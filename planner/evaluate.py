"""A candidate's numbers and the constraints it breaks."""

from collections.abc import Iterator
from functools import cache, lru_cache, partial
from typing import NamedTuple

from planner.adapters import Adapter, adapters
from planner.cost.adapter import AdapterCost
from planner.cost.latency import Served, first_token, miss_rate, per_token, throughput
from planner.cost.memory import Load, ServingMemory, serving_memory
from planner.cost.work import ENGINES, Work
from planner.cut import Micro, best_micro, least_required_bytes, required
from planner.forms import Form, Refusal, form_quality, forms
from planner.method import Method
from planner.quality import NOTHING, Quality
from planner.runtime import RuntimeLimits, limits_of
from planner.scenario import Scenario

FOLDED = AdapterCost(0, 0, 0, 0, 0, 0)
"""What is left to serve of an adapter in a merged weight."""

FREE = FOLDED._replace(reaches_attention=0, reaches_mlp=0)
"""An adapter that costs less than any."""


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
    storage_bytes: float


class Evaluated(NamedTuple):
    """One candidate; `training_required_bytes` are those of the thriftiest way to cut a step."""

    adapter: Adapter
    form: Form
    form_quality: Quality
    training_required_bytes: float
    serving: ServedCost
    violations: tuple[Violation, ...]

    @property
    def points(self) -> float:
        return self.adapter.quality.points + self.form_quality.points

    @property
    def quality(self) -> Quality:
        return self.adapter.quality + self.form_quality

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
    """Evaluate every candidate; how a step is best cut is found for those that are asked about."""
    weighed = list(_weighed(scenario, unbuildable=unbuildable))
    return Search(
        candidates=tuple(each for each in weighed if isinstance(each, Evaluated)),
        refusals=tuple(dict.fromkeys(each for each in weighed if isinstance(each, Refusal))),
    )


def is_feasible(scenario: Scenario, *, unbuildable: bool = False) -> bool:
    """Whether any candidate keeps every limit; ends with the first that does."""
    serve = cache(partial(measure, scenario))

    def keeps(adapter: Adapter) -> bool:
        for form in forms(scenario, adapter.method, adapter.rank):
            if not isinstance(form, Refusal):
                training = least_required_bytes(scenario, adapter, form.format)
                if not _violations(scenario, training, serve(adapter.cost, form)):
                    return True
        return False

    def promising(found: Method) -> bool:
        # Where an adapter that costs nothing breaks a limit, every adapter does.
        return found.trains_base or keeps(Adapter(found, None, (), FREE, NOTHING))

    found = adapters(scenario, unbuildable=unbuildable, promising=promising)
    return any(not isinstance(each, Refusal) and keeps(each) for each in found)


def _weighed(scenario: Scenario, *, unbuildable: bool) -> Iterator[Evaluated | Refusal]:
    # LoRA, rsLoRA and LoRA+ cost the same, so what serving one of them takes is not asked again.
    serve = cache(partial(measure, scenario))
    added = cache(partial(form_quality, scenario))
    for adapter in adapters(scenario, unbuildable=unbuildable):
        if isinstance(adapter, Refusal):
            yield adapter
            continue
        needed: dict[str, float] = {}
        for form in forms(scenario, adapter.method, adapter.rank):
            if isinstance(form, Refusal):
                yield form
                continue
            if form.format not in needed:
                needed[form.format] = least_required_bytes(scenario, adapter, form.format)
            training = needed[form.format]
            serving = serve(adapter.cost if form.export == "unmerged" else FOLDED, form)
            broken = _violations(scenario, training, serving)
            yield Evaluated(adapter, form, added(form), training, serving, broken)


def evaluated(
    scenario: Scenario, adapter: Adapter, form: Form, training_required_bytes: float
) -> Evaluated:
    """One candidate, whose step needs that much however it is cut."""
    serving = measure(scenario, adapter.cost, form)
    return Evaluated(
        adapter=adapter,
        form=form,
        form_quality=form_quality(scenario, form),
        training_required_bytes=training_required_bytes,
        serving=serving,
        violations=_violations(scenario, training_required_bytes, serving),
    )


def micro_of(scenario: Scenario, found: Evaluated) -> Micro:
    """How that candidate's step is best cut."""
    return best_micro(scenario, found.adapter, found.form.format)


def measure(scenario: Scenario, cost: AdapterCost, form: Form) -> ServedCost:
    """What serving an adapter of that `cost`, which may be of columns, takes in that form."""
    device, arithmetic = scenario.serving, serving_compute(scenario)
    memory = serving_memory(
        scenario.architecture, cost, form.format, form.export, load_of(scenario)
    )
    prompt, step = passes(scenario, cost, form)
    return ServedCost(
        memory=memory,
        required_bytes=required(memory.total_bytes, memory.half_width_bytes, device),
        first_token_seconds=prompt.seconds(device, arithmetic),
        per_token_seconds=step.seconds(device, arithmetic) if scenario.causal else None,
        storage_bytes=_storage_bytes(scenario, cost, form, memory),
    )


def tokens_per_second(scenario: Scenario, cost: AdapterCost, form: Form) -> float | None:
    """Written by one device with a full batch; None where its figures are unknown."""
    prompt, step = passes(scenario, cost, form)
    answer = max(1, scenario.context_length - scenario.prompt_tokens)
    device, load = scenario.serving, load_of(scenario)
    rate = throughput(prompt, step, load, answer, device, serving_compute(scenario))
    return None if rate is None else rate.tokens_per_second


def passes(scenario: Scenario, cost: AdapterCost, form: Form) -> tuple[Work, Work]:
    """A prompt and a decoding step."""
    shape, load = scenario.architecture, load_of(scenario)
    served = Served(
        form.format,
        form.export,
        form.precision,
        ENGINES[scenario.spec.serving.runtime],
        miss_rate(scenario.active_tenants, scenario.slots),
    )
    return first_token(shape, cost, served, load), per_token(shape, cost, served, load)


def serving_compute(scenario: Scenario) -> str:
    """Of half precisions the one that the device has, and fp32 where it has none."""
    wanted, device = _limits(scenario).compute, scenario.serving
    if wanted == "fp32" or device.bf16_tflops is not None:
        return wanted
    return "fp32" if device.fp16_tflops is None else "fp16"


def _limits(scenario: Scenario) -> RuntimeLimits:
    return limits_of(scenario.spec.serving.runtime, scenario.serving.kind)


@lru_cache(maxsize=64)
def load_of(scenario: Scenario) -> Load:
    limits = _limits(scenario)
    return Load(
        slots=scenario.slots,
        sequences=scenario.concurrency,
        context_length=scenario.context_length,
        prompt_tokens=scenario.prompt_tokens,
        causal=scenario.causal,
        cache_element_bytes=limits.cache_element_bytes,
        other_bytes=limits.other_bytes,
        row_element_bytes=limits.row_element_bytes,
        logits=limits.logits,
        beside_window=limits.beside_window,
        writes_scores=scenario.serving.kind in limits.writes_scores,
        quantises_experts=limits.quantises_experts,
    )


def _storage_bytes(
    scenario: Scenario, cost: AdapterCost, form: Form, serving: ServingMemory
) -> float:
    """On disk for all tenants: adapters beside one base, or a whole model each."""
    one_base = serving.weights_bytes
    if form.export == "merged":
        return one_base / scenario.slots * scenario.tenants
    return one_base + scenario.tenants * cost.stored_bytes + cost.shared_bytes


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
        [
            Violation(name, number, limit, unit)
            for name, number, limit, unit in checks
            if number is not None and limit is not None and number > limit
        ]
    )
