"""Any spec: a plan without NaN or a stated error; and monotone where it must be."""

import math
from collections.abc import Iterator
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import Plan, Spec, catalog, recommend
from planner.adapters import Adapter, adapted, adapters, select
from planner.catalog import names
from planner.cost.adapter import adapter_cost, target_set
from planner.cut import Micro, best_micro, cost_of, cuts, least_required_bytes, step_of
from planner.errors import InfeasibleError, UsageError
from planner.evaluate import FREE, is_feasible, search
from planner.forms import Refusal
from planner.resolve import resolve, task_of
from planner.scenario import Scenario
from planner.spec import Family, Priority, Runtime

MODELS = ["smollm2-135m", "qwen2.5-0.5b", "llama-3.1-8b", "all-minilm-l6-v2", "gpt2"]

hardware = st.one_of(
    st.sampled_from(["cpu-2core", "l4", "h100-80gb"]),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["cpu", "gpu"]), "memory_gib": st.floats(0.1, 500)},
        optional={
            "bandwidth_gb_per_second": st.none() | st.floats(1, 5000),
            "fp32_tflops": st.none() | st.floats(0.1, 100),
            "bf16_tflops": st.none() | st.floats(0.1, 1000),
            "fp16_tflops": st.none() | st.floats(0.1, 1000),
        },
    ),
)
counts = st.integers(1, 10**6)
specs = st.fixed_dictionaries(
    {
        "model": st.sampled_from(MODELS),
        "task": st.sampled_from(["causal_lm", "sequence_classification"]),
        "vram_gib": st.floats(0.2, 200),
    },
    optional={
        "family": st.sampled_from(get_args(Family)),
        "priority": st.sampled_from(get_args(Priority)),
        "training": st.fixed_dictionaries({}, optional={"hardware": hardware, "max_steps": counts}),
        "serving": st.fixed_dictionaries(
            {},
            optional={
                "hardware": hardware,
                "memory_gib": st.floats(0.1, 500),
                "tenants": counts,
                "active_tenants": st.integers(1, 50),
                "context_length": st.integers(1, 9000),
                "first_token_ms": st.floats(1, 1e5),
                "per_token_ms": st.floats(0.1, 1e4),
                "runtime": st.sampled_from(get_args(Runtime)),
                "slots": st.integers(1, 50),
                "concurrency": st.integers(1, 500),
            },
        ),
        "data": st.fixed_dictionaries(
            {}, optional={"examples": counts, "mean_tokens": st.integers(1, 5000)}
        ),
        "pinned": st.fixed_dictionaries(
            {},
            optional={
                "method": st.sampled_from(["lora", "vera", "ia3", "full", "qlora"]),
                "rank": st.integers(1, 4096),
                "format": st.sampled_from(["fp32", "bf16", "nf4"]),
                "batch_size": st.integers(1, 1000),
                "sequence_length": st.integers(1, 100_000),
                "checkpointing": st.sampled_from(["none", "block"]),
                "export": st.sampled_from(["unmerged", "merged"]),
                "precision": st.sampled_from(["exact", "fast"]),
            },
        ),
    },
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(document=specs)
def test_any_spec_gives_a_plan_or_a_stated_error(document: dict[str, object]) -> None:
    spec = Spec.model_validate(document)
    try:
        plan = recommend(spec)
    except (UsageError, InfeasibleError):
        return
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    for figure in plan.figures.values():
        assert figure.value is None or math.isfinite(figure.value)
    for rejection in plan.rejections:
        assert rejection.number is None or math.isfinite(rejection.number)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    model=st.sampled_from(["smollm2-135m", "llama-3.1-8b", "gpt2"]),
    vram=st.floats(0.5, 100),
    more=st.floats(1.0, 3.0),
    length=st.integers(16, 1024),
    tenants=st.integers(1, 20),
)
def test_more_memory_never_makes_a_candidate_infeasible(
    model: str, vram: float, more: float, length: int, tenants: int
) -> None:
    def feasible(gib: float) -> set[str]:
        document = {
            "model": model,
            "task": "causal_lm",
            "vram_gib": gib,
            "serving": {"tenants": tenants, "context_length": 512},
            "pinned": {"sequence_length": length, "method": "lora"},
        }
        scenario = resolve(Spec.model_validate(document))
        return {found.describe() for found in search(scenario).feasible}

    assert feasible(vram) <= feasible(vram * more)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(length=st.integers(16, 512), longer=st.integers(1, 512))
def test_longer_sequences_never_take_less_memory(length: int, longer: int) -> None:
    def needed(tokens: int) -> list[float]:
        document = {
            "model": "smollm2-135m",
            "task": "causal_lm",
            "vram_gib": 1000,
            "pinned": {"sequence_length": tokens, "method": "dora", "rank": 8, "batch_size": 4},
        }
        scenario = resolve(Spec.model_validate(document))
        return [c.training_required_bytes for c in search(scenario).candidates]

    pairs = zip(needed(length), needed(length + longer), strict=True)
    assert all(shorter < longer_ for shorter, longer_ in pairs)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(document=specs)
def test_a_shortcut_to_feasibility_hides_no_candidate(document: dict[str, object]) -> None:
    try:
        scenario = resolve(Spec.model_validate(document))
    except UsageError:
        return
    assert is_feasible(scenario) == bool(search(scenario).feasible)


@pytest.mark.parametrize("model", names("models"))
def test_an_adapter_never_takes_less_than_none(model: str) -> None:
    """And recomputing blocks never takes more than keeping them."""
    shape = catalog.model(model).architecture
    document = {"model": model, "task": task_of(shape), "vram_gib": 1000}
    scenario = resolve(Spec.model_validate(document))
    for found in adapters(scenario, unbuildable=True):
        if isinstance(found, Refusal) or found.method.trains_base:
            continue
        for batch in (1, 8):
            kept, recomputed = (
                required_bytes(scenario, found, mode, batch) for mode in ("none", "block")
            )
            free = found._replace(cost=FREE)
            assert required_bytes(scenario, free, "block", batch) <= recomputed <= kept


def required_bytes(scenario: Scenario, adapter: Adapter, mode: str, batch: int) -> float:
    step = step_of(scenario, adapter, "nf4", mode, batch)
    return cost_of(scenario, adapter.cost, step).required_bytes


def all_cuts(
    scenario: Scenario, *, unbuildable: bool
) -> Iterator[tuple[Adapter, str, list[Micro]]]:
    """Every adapter on every format, with the cost of each way to cut its step."""
    for found in adapters(scenario, unbuildable=unbuildable):
        if isinstance(found, Refusal):
            continue
        for format_ in found.method.formats:
            yield (
                found,
                format_,
                [
                    cost_of(scenario, found.cost, step_of(scenario, found, format_, mode, size))
                    for mode, sizes in cuts(scenario)
                    for size in sizes
                ],
            )


@pytest.mark.parametrize("length", [16, 1024])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "smollm2-135m", "mixtral-8x7b", "qwen2.5-0.5b"])
def test_the_thriftiest_cut_is_the_least_of_all(model: str, length: int) -> None:
    """Of short sequences the gradients kept between micro-batches weigh more than activations."""
    pinned = {"sequence_length": length}
    document = {"model": model, "task": "causal_lm", "vram_gib": 1000, "pinned": pinned}
    scenario = resolve(Spec.model_validate(document))
    for found, format_, every in all_cuts(scenario, unbuildable=True):
        least = min(micro.required_bytes for micro in every)
        assert least_required_bytes(scenario, found, format_) == least


@pytest.mark.parametrize("model", ["llama-3.1-8b", "smollm2-135m", "bert-base"])
@pytest.mark.parametrize("gib", [1, 8, 16, 80])
def test_the_best_cut_is_the_fastest_that_fits(model: str, gib: int) -> None:
    shape = catalog.model(model).architecture
    training = {"hardware": "a100-80gb"}
    document = {"model": model, "task": task_of(shape), "vram_gib": gib, "training": training}
    scenario = resolve(Spec.model_validate(document))
    for found, format_, every in all_cuts(scenario, unbuildable=False):
        fitting = [m for m in every if m.required_bytes <= scenario.training_budget_bytes]
        times = [micro.step_seconds for micro in fitting if micro.step_seconds is not None]
        best = best_micro(scenario, found, format_)
        assert len(times) == len(fitting)
        assert not times or best.step_seconds == min(times)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "bert-base"])
def test_a_search_takes_no_method_for_another(model: str) -> None:
    """Methods that cost the same are counted once."""
    shape = catalog.model(model).architecture
    document = {"model": model, "task": task_of(shape), "vram_gib": 1000}
    for found in adapters(resolve(Spec.model_validate(document))):
        if not isinstance(found, Refusal):
            linears = adapted(found.method, target_set(select(found.targets, shape)))
            assert found.cost == adapter_cost(found.method, found.rank, linears, shape)
