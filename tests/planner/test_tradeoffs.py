"""The frontier document: the recommended point is in it, and nothing on it is dominated."""

import pytest

from planner.catalog import specs_folder
from planner.documents import load_spec
from planner.recommendation import recommend
from planner.spec import Spec
from planner.tradeoffs import Frontier, dominance_graph, frontier

EXAMPLES = ["llama-3.1-8b-24gb", "smollm2-tenants", "minilm-classifiers"]


def spec_of(name: str) -> Spec:
    return load_spec(specs_folder() / "examples" / f"{name}.json")


@pytest.mark.parametrize(
    ("name", "unbuildable"),
    [*((name, False) for name in EXAMPLES), ("storage-100k-tenants", True)],
)
def test_the_chosen_point_is_the_recommended_plan(name: str, *, unbuildable: bool) -> None:
    spec = spec_of(name)
    found, plan = (build(spec, unbuildable=unbuildable) for build in (frontier, recommend))
    chosen = next(point for point in found.points if point.id == found.chosen)
    assert chosen.feasible
    wanted = plan.candidate.model_dump(include=set(chosen.candidate))
    assert chosen.candidate == wanted
    points = plan.figures["quality.difference_points"].value
    assert chosen.values["quality_points"] == pytest.approx(points)


@pytest.mark.parametrize("name", EXAMPLES)
def test_dominance_is_stated_both_ways(name: str) -> None:
    found = frontier(spec_of(name))
    graph = dominance_graph(found)
    known = {point.id: point for point in found.points}
    for point in found.points:
        assert point.feasible == (not point.broken)
        if point.on_frontier:
            assert point.feasible
            assert point.dominated_by is None
        elif point.feasible and point.dominated_by is not None:
            assert known[point.dominated_by].feasible
            assert graph.has_edge(point.dominated_by, point.id)


def test_an_impossible_spec_has_points_and_no_choice() -> None:
    found = frontier(spec_of("infeasible-8b-6gb"))
    assert found.chosen is None
    assert found.points
    assert not any(point.feasible or point.on_frontier for point in found.points)


def test_a_document_comes_back_from_json() -> None:
    found = frontier(spec_of("minimal"))
    assert Frontier.model_validate_json(found.model_dump_json()) == found
