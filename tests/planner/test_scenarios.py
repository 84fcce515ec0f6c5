"""What the planner answers where experts have an answer, and where the evidence says otherwise.

A scenario is a spec of specs/examples; `folklore` is what is usually advised. Where another method
is chosen, the explanation says why the advised one was not, with its number.
"""

from typing import NamedTuple

import pytest

from planner import catalog
from planner.documents import load_spec
from planner.plan import Plan
from planner.recommendation import recommend


class Scenario(NamedTuple):
    """`buildable` is the choice among what can be built, `chosen` among all methods."""

    folklore: str
    buildable: str | None
    chosen: str


SCENARIOS = {
    "general-7b-24gb": Scenario("qlora", "qlora", "dora"),
    "llama-3.1-70b-48gb": Scenario("qlora", "qlora", "qlora"),
    "quality-first-8b": Scenario("dora", "dora", "c3a"),
    "time-critical-8b": Scenario("lora_plus", "lora_plus", "lora_plus"),
    "mistral-500-tenants": Scenario("lora", "qlora", "rslora"),
    "storage-100k-tenants": Scenario("vera", "vera", "road"),
    "few-shot-style": Scenario("ia3", "ia3", "ia3"),
    "huge-model-simple-task": Scenario("prompt_tuning", "qlora", "qlora"),
    "precision-critical": Scenario("full", "full", "full"),
    "quantised-start-matters": Scenario("loftq", "dora", "miss"),
    "rank-unknown": Scenario("adalora", "dora", "miss"),
    "edge-cpu": Scenario("lora", "lora", "lora"),
    "image-low-memory": Scenario("oft", None, "qlora"),
}
FAMILY = {"lora", "qlora", "lora_plus", "rslora", "dora"}
"""Low-rank pairs that differ in scale, rate or base: a general advice of LoRA means them all."""


def plan_of(name: str, *, unbuildable: bool) -> Plan:
    spec = load_spec(catalog.specs_folder() / "examples" / f"{name}.json")
    return recommend(spec, unbuildable=unbuildable)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_choice_among_all_methods(name: str) -> None:
    plan = plan_of(name, unbuildable=True)
    expected = SCENARIOS[name]
    assert plan.candidate.method == expected.chosen
    if expected.folklore == plan.candidate.method:
        return
    reasons = [r.reason for r in plan.rejections if r.candidate.split(" ")[0] == expected.folklore]
    assert reasons, f"nothing is said of {expected.folklore}"
    assert any("points from the choice" in reason or "needs" in reason for reason in reasons)


@pytest.mark.parametrize("name", [n for n, s in SCENARIOS.items() if s.buildable])
def test_the_choice_among_what_can_be_built(name: str) -> None:
    assert plan_of(name, unbuildable=False).candidate.method == SCENARIOS[name].buildable


def test_a_choice_against_folklore_is_a_tie_or_better() -> None:
    """The advised method is within a tie of the choice, or expected to be worse."""
    for name, expected in SCENARIOS.items():
        plan = plan_of(name, unbuildable=True)
        points = {
            r.candidate.split(" ")[0]: r.reason
            for r in plan.rejections
            if "from the choice" in r.reason
        }
        if expected.folklore in points and plan.spec.priority == "quality":
            assert "+" not in points[expected.folklore].split(" points")[0]
