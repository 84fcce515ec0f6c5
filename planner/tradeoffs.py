"""Every candidate's numbers side by side: limits, dominance and the choice."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from planner.adapters import Adapter
from planner.builds import check_builds
from planner.cut import accumulation
from planner.evaluate import micro_of, search
from planner.forms import form_quality
from planner.pareto import choose
from planner.plan import SCHEMA_VERSION
from planner.resolve import resolve
from planner.scenario import Scenario
from planner.section import Section
from planner.section_schema import JsonValue
from planner.spec import Spec
from planner.sweep import Cut, Sweep, dominance, objectives, pareto_front, sweep

if TYPE_CHECKING:
    import networkx


class Axis(Section):
    """One quantity; `limit` is in the unit of the values."""

    key: str
    title: str
    unit: str
    lower_is_better: bool
    limit: float | None


class Point(Section):
    """One candidate; `values` are by axis key, None is unknown.

    `broken` names the limits it does not keep, `dominated_by` a point that is nowhere worse.
    """

    id: int
    label: str
    candidate: dict[str, JsonValue]
    values: dict[str, float | None]
    quality_half_width: float
    feasible: bool
    broken: tuple[str, ...]
    on_frontier: bool
    dominated_by: int | None
    evidence_ids: tuple[str, ...]


class Frontier(Section):
    """`chosen` is the id of the recommended point; None where nothing is feasible."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    task: str
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    chosen: int | None


TITLES = {
    "quality_points": ("Quality against LoRA", "points"),
    "training_bytes": ("Training memory needed", "bytes"),
    "serving_bytes_per_tenant": ("Serving memory for each active tenant", "bytes"),
    "latency_seconds": ("Latency", "seconds"),
    "storage_bytes": ("Storage of all tenants", "bytes"),
    "training_seconds": ("One optimizer step, weighted by the steps needed", "seconds"),
}
FINENESS = 0.01
"""Candidates whose every figure agrees to this share, and quality to 0.1 points, show as one."""


def frontier(spec: Spec, *, unbuildable: bool = False) -> Frontier:
    """Every trade-off open to the spec; raises UsageError as `recommend` does.

    Points are the Pareto front of the feasible candidates over six figures, the recommended
    candidate, and each method's best candidate, feasible or not.
    """
    scenario = resolve(spec)
    if not unbuildable:
        check_builds(scenario)
    swept = sweep(scenario, unbuildable=unbuildable)
    chosen = _chosen(scenario, swept, unbuildable=unbuildable)
    shown, front = _shown(swept, chosen)
    dominators = _dominators(swept, shown)
    points = tuple(
        _point(scenario, swept, place, on_front=place in front, dominator=dominators[place])
        for place in shown
    )
    return Frontier(
        model=scenario.model.name,
        task=spec.task,
        axes=_axes(scenario),
        points=points,
        chosen=chosen,
    )


def dominance_graph(found: Frontier) -> "networkx.DiGraph[int]":
    """An edge from each point to every feasible point that it dominates."""
    import networkx  # noqa: PLC0415, only for those who ask

    feasible = [point for point in found.points if point.feasible]
    rows = np.array([_row(found.axes, point) for point in feasible]).reshape(len(feasible), -1)
    graph: networkx.DiGraph[int] = networkx.DiGraph()
    graph.add_nodes_from(point.id for point in feasible)
    for above, below in np.argwhere(dominance(rows)):
        graph.add_edge(feasible[above].id, feasible[below].id)
    return graph


def _row(axes: Sequence[Axis], point: Point) -> list[float]:
    signs = {axis.key: 1.0 if axis.lower_is_better else -1.0 for axis in axes}
    return [signs[key] * (value or 0.0) for key, value in point.values.items()]


def _axes(scenario: Scenario) -> tuple[Axis, ...]:
    seconds = scenario.per_token_seconds if scenario.causal else scenario.first_token_seconds
    limits = {
        "training_bytes": scenario.training_budget_bytes,
        "serving_bytes_per_tenant": scenario.serving_budget_bytes / scenario.active_tenants,
        "latency_seconds": seconds,
    }
    titles = dict(TITLES)
    titles["latency_seconds"] = ("Each token" if scenario.causal else "Each answer", "seconds")
    return tuple(
        Axis(
            key=key,
            title=title,
            unit=unit,
            lower_is_better=key != "quality_points",
            limit=limits.get(key),
        )
        for key, (title, unit) in titles.items()
    )


def _chosen(scenario: Scenario, swept: Sweep, *, unbuildable: bool) -> int | None:
    """The place of the recommended candidate in the sweep."""
    weighed = search(scenario, unbuildable=unbuildable)
    if not weighed.feasible:
        return None
    best, _ = choose(scenario, weighed.feasible)
    adapter = next(i for i, a in enumerate(swept.adapters) if _same(a, best.adapter))
    form = swept.forms.index(best.form)
    micro = micro_of(scenario, best)
    cut = swept.cuts.index(Cut(micro.checkpointing, micro.batch_size))
    match = (swept.adapter == adapter) & (swept.form == form) & (swept.cut == cut)
    return int(match.nonzero()[0][0])


def _same(one: Adapter, other: Adapter) -> bool:
    return (one.method.name, one.rank, one.targets) == (
        other.method.name,
        other.rank,
        other.targets,
    )


def _shown(swept: Sweep, chosen: int | None) -> tuple[list[int], frozenset[int]]:
    """Places of the points to show, and of those the places on the front."""
    feasible = np.flatnonzero(swept.feasible)
    rows = objectives(swept, feasible)
    bytes_and_seconds = np.log(np.maximum(rows[:, 1:], 1e-12)) / FINENESS
    coarse = np.column_stack([np.round(rows[:, 0], 1), np.round(bytes_and_seconds)])
    front = {int(place) for place in feasible[pareto_front(coarse)]}
    shown = front | set(_best_of_methods(swept))
    if chosen is not None:
        shown.add(chosen)
    return sorted(shown), frozenset(front)


def _best_of_methods(swept: Sweep) -> Iterator[int]:
    """Of each method the candidate with fewest broken limits, then best quality, least memory."""
    broken = np.sum(list(swept.broken.values()), axis=0)
    quality, memory = swept.values["quality_points"], swept.values["training_bytes"]
    order = np.lexsort((memory, -quality, broken))
    seen = set()
    for place in order:
        name = swept.adapters[swept.adapter[place]].method.name
        if name not in seen:
            seen.add(name)
            yield int(place)


def _dominators(swept: Sweep, shown: Sequence[int]) -> dict[int, int | None]:
    """For each place shown the first feasible place shown that dominates it."""
    places = np.array(shown, dtype=int)
    above = dominance(objectives(swept, places)) & swept.feasible[places][:, None]
    return {
        place: int(places[np.argmax(above[:, column])]) if above[:, column].any() else None
        for column, place in enumerate(shown)
    }


def _point(
    scenario: Scenario, swept: Sweep, place: int, *, on_front: bool, dominator: int | None
) -> Point:
    adapter = swept.adapters[swept.adapter[place]]
    form, cut = swept.forms[swept.form[place]], swept.cuts[swept.cut[place]]
    mode = ", checkpointed" if cut.checkpointing == "block" else ""
    broken = tuple(name for name, flags in swept.broken.items() if flags[place])
    numbers = {name: float(column[place]) for name, column in swept.values.items()}
    evidence = (adapter.quality + form_quality(scenario, form)).evidence_ids
    return Point(
        id=place,
        label=f"{adapter.describe()}, {form.describe()}, batch {cut.batch_size}{mode}",
        candidate={
            "method": adapter.method.name,
            "rank": adapter.rank,
            "targets": list(adapter.targets),
            "format": form.format,
            "export": form.export,
            "precision": form.precision,
            "batch_size": cut.batch_size,
            "gradient_accumulation": accumulation(scenario, cut.batch_size),
            "checkpointing": cut.checkpointing,
        },
        values={name: None if math.isnan(n) else n for name, n in numbers.items()},
        quality_half_width=float(swept.quality_half_width[place]),
        feasible=not broken,
        broken=broken,
        on_frontier=on_front,
        dominated_by=None if on_front else dominator,
        evidence_ids=tuple(dict.fromkeys(evidence)),
    )
