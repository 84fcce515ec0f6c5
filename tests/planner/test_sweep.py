"""The sweep: the same numbers as one candidate at a time, and a front that nothing dominates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planner.catalog import specs_folder
from planner.cut import cost_of, step_of
from planner.documents import load_spec
from planner.evaluate import evaluated, search
from planner.quality import steps_share
from planner.resolve import resolve
from planner.scenario import Scenario
from planner.sweep import dominance, objectives, pareto_front, sweep

EXAMPLES = ["llama-3.1-8b-24gb", "mistral-500-tenants", "minilm-classifiers"]


def scenario_of(name: str) -> Scenario:
    return resolve(load_spec(specs_folder() / "examples" / f"{name}.json"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_column_holds_what_one_candidate_gives(name: str) -> None:
    scenario = scenario_of(name)
    swept = sweep(scenario)
    # A prime stride visits every method, form and cut without evaluating all of them.
    for place in range(0, len(swept), 97):
        adapter, form = swept.adapters[swept.adapter[place]], swept.forms[swept.form[place]]
        cut = swept.cuts[swept.cut[place]]
        cut_so = step_of(scenario, adapter, form.format, cut.checkpointing, cut.batch_size)
        step = cost_of(scenario, adapter.cost, cut_so)
        alone = evaluated(scenario, adapter, form, step.required_bytes)
        wanted = {
            "quality_points": alone.quality.points,
            "training_bytes": step.required_bytes,
            "serving_bytes_per_tenant": alone.serving.required_bytes / scenario.active_tenants,
            "storage_bytes": alone.serving.storage_bytes,
            "training_seconds": None
            if step.step_seconds is None
            else step.step_seconds * steps_share(adapter.method.name),
        }
        found = {key: swept.values[key][place] for key in wanted}
        assert found == pytest.approx(
            {key: np.nan if value is None else value for key, value in wanted.items()},
            nan_ok=True,
        )
        assert swept.quality_half_width[place] == pytest.approx(alone.quality.half_width)
        assert {key for key, flags in swept.broken.items() if flags[place]} == {
            violation.constraint for violation in alone.violations
        }


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_candidate_of_a_search_is_swept(name: str) -> None:
    scenario = scenario_of(name)
    swept = sweep(scenario)
    places = set(zip(swept.adapter, swept.form, strict=True))
    shown = {
        f"{swept.adapters[adapter].describe()}, {swept.forms[form].describe()}"
        for adapter, form in places
    }
    assert shown == {found.describe() for found in search(scenario).candidates}
    assert len(swept) == len(places) * len(swept.cuts)


rows = arrays(float, st.tuples(st.integers(0, 40), st.just(3)), elements=st.integers(0, 4))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=rows)
def test_the_front_is_what_nothing_dominates(rows: np.ndarray) -> None:
    front = pareto_front(rows)
    undominated = ~dominance(rows).any(axis=0)
    assert {tuple(row) for row in rows[front]} == {tuple(row) for row in rows[undominated]}
    assert len({tuple(row) for row in rows[front]}) == len(front)


def test_unknown_times_do_not_keep_a_candidate_off_the_front() -> None:
    scenario = scenario_of("minimal")
    swept = sweep(scenario)
    assert np.isnan(swept.values["training_seconds"]).all()
    assert np.isfinite(objectives(swept, np.arange(len(swept)))).all()
