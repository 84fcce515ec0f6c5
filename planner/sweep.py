"""Every candidate at once, in columns: method x rank x targets x format x export x batch x mode.

`search` keeps the best way to cut a training step; a sweep keeps all of them. The formulas are the
same: they are given a method's adapters as one adapter whose costs are columns.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from planner.adapters import Adapter, adapters
from planner.cost.adapter import AdapterCost
from planner.cut import cost_of, cuts, optimizer_of, step_of
from planner.evaluate import measure
from planner.forms import Form, Refusal, form_quality, forms
from planner.quality import steps_share
from planner.scenario import Scenario

Column = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]

OBJECTIVES = (
    "quality_points",
    "training_bytes",
    "serving_bytes_per_tenant",
    "latency_seconds",
    "storage_bytes",
    "training_seconds",
)
CONSTRAINTS = ("training memory", "serving memory", "first token", "per token")


class Cut(NamedTuple):
    checkpointing: str
    batch_size: int


class Sweep(NamedTuple):
    """One entry per candidate in every column; NaN is unknown.

    `adapter`, `form` and `cut` are places in the three tuples; `broken` has a column of flags per
    constraint.
    """

    adapters: tuple[Adapter, ...]
    forms: tuple[Form, ...]
    cuts: tuple[Cut, ...]
    adapter: Indices
    form: Indices
    cut: Indices
    values: dict[str, Column]
    quality_half_width: Column
    broken: dict[str, Flags]

    @property
    def feasible(self) -> Flags:
        flags: Flags = ~np.any([self.broken[name] for name in CONSTRAINTS], axis=0)
        return flags

    def __len__(self) -> int:
        return len(self.adapter)


def sweep(scenario: Scenario, *, unbuildable: bool = False) -> Sweep:
    """Evaluate every candidate of the scenario."""
    found = [a for a in adapters(scenario, unbuildable=unbuildable) if isinstance(a, Adapter)]
    # One formula for all that are trained alike; whose inputs are longer has a column of lengths.
    found.sort(key=lambda adapter: _alike(scenario, adapter))
    all_cuts = [Cut(mode, size) for mode, sizes in cuts(scenario) for size in sizes]
    all_forms: dict[Form, int] = {}
    blocks: list[dict[str, Any]] = []
    start = 0
    for _, group in groupby(found, key=lambda adapter: _alike(scenario, adapter)):
        members = list(group)
        blocks += _blocks(scenario, members, start, all_cuts, all_forms)
        start += len(members)
    joined = {
        name: np.concatenate([block[name] for block in blocks]) if blocks else np.zeros(0)
        for name in (*_PLACES, *OBJECTIVES, "quality_half_width", *CONSTRAINTS)
    }
    return Sweep(
        adapters=tuple(found),
        forms=tuple(all_forms),
        cuts=tuple(all_cuts),
        adapter=joined["adapter"].astype(int),
        form=joined["form"].astype(int),
        cut=joined["cut"].astype(int),
        values={name: joined[name] for name in OBJECTIVES},
        quality_half_width=joined["quality_half_width"],
        broken={name: joined[name].astype(bool) for name in CONSTRAINTS},
    )


_PLACES = ("adapter", "form", "cut")


def _alike(scenario: Scenario, adapter: Adapter) -> tuple[bool, str, bool]:
    found = adapter.method
    return found.trains_base, optimizer_of(scenario, adapter), found.adds_tokens == "input"


def _blocks(
    scenario: Scenario,
    members: Sequence[Adapter],
    start: int,
    all_cuts: Sequence[Cut],
    all_forms: dict[Form, int],
) -> Iterable[dict[str, Any]]:
    """The candidates of adapters trained alike, a block of [cuts, adapters] per form."""
    allowed: dict[Form, list[int]] = {}
    for place, member in enumerate(members):
        for form in forms(scenario, member.method, member.rank):
            if not isinstance(form, Refusal):
                allowed.setdefault(form, []).append(place)
    column = _columns(members)
    own = {
        "adapter": np.arange(start, start + len(members)),
        "quality_points": np.array([member.quality.points for member in members]),
        "quality_half_width": np.array([member.quality.half_width for member in members]),
        "steps_share": np.array([steps_share(member.method.name) for member in members]),
    }
    trained: dict[str, dict[str, Any]] = {}
    for form, kept in allowed.items():
        if form.format not in trained:
            trained[form.format] = _trained(scenario, column, form.format, all_cuts, own)
        block = _served(scenario, column.cost, form, own) | trained[form.format]
        block["form"] = all_forms.setdefault(form, len(all_forms))
        shape = (len(all_cuts), len(members))
        yield {
            name: np.broadcast_to(value, shape)[:, kept].ravel() for name, value in block.items()
        }


def _trained(
    scenario: Scenario,
    column: Adapter,
    format_: str,
    all_cuts: Sequence[Cut],
    own: Mapping[str, Column],
) -> dict[str, Any]:
    """[cuts, adapters] of what depends on the cut of the step."""
    steps = [
        step_of(scenario, column, format_, cut.checkpointing, cut.batch_size) for cut in all_cuts
    ]
    found = [cost_of(scenario, column.cost, step) for step in steps]
    count = len(own["adapter"])

    def rows(values: Iterable[Any]) -> Any:  # noqa: ANN401, columns
        return np.stack([np.broadcast_to(value, count) for value in values])

    needed = rows(each.required_bytes for each in found)
    seconds = rows(_known(each.step_seconds) for each in found)
    return {
        "cut": np.arange(len(all_cuts))[:, None],
        "training_bytes": needed,
        "training_seconds": own["steps_share"] * seconds,
        "training memory": needed > scenario.training_budget_bytes,
    }


def _served(
    scenario: Scenario, cost: AdapterCost, form: Form, own: Mapping[str, Column]
) -> dict[str, Any]:
    """[adapters] of what depends on the form alone."""
    quality, served = form_quality(scenario, form), measure(scenario, cost, form)
    latency = served.per_token_seconds if scenario.causal else served.first_token_seconds
    return {
        "adapter": own["adapter"],
        "quality_points": own["quality_points"] + quality.points,
        "quality_half_width": np.hypot(own["quality_half_width"], quality.half_width),
        "serving_bytes_per_tenant": served.required_bytes / scenario.active_tenants,
        "latency_seconds": _known(latency),
        "storage_bytes": served.storage_bytes,
        "serving memory": served.required_bytes > scenario.serving_budget_bytes,
        "first token": _over(served.first_token_seconds, scenario.first_token_seconds),
        "per token": _over(served.per_token_seconds, scenario.per_token_seconds),
    }


def _columns(members: Sequence[Adapter]) -> Adapter:
    """The adapters as one, whose costs are columns, or numbers where all agree."""
    fields: list[Any] = []
    for values in zip(*(member.cost for member in members), strict=True):
        if len(set(values)) == 1:
            fields.append(values[0])
            continue
        fields.append(np.array(values, float))
        # A formula that adds to a column in place would spoil it for the next one.
        fields[-1].flags.writeable = False
    return members[0]._replace(cost=AdapterCost(*fields))


def _known(seconds: Any) -> Any:  # noqa: ANN401, a number, a column or None
    return float("nan") if seconds is None else seconds


def _over(seconds: Any, limit: float | None) -> Any:  # noqa: ANN401, a number, a column or None
    return False if seconds is None or limit is None else seconds > limit


def dominance(rows: Column) -> Flags:
    """[n, n]: whether row i is nowhere worse than row j and somewhere better; lower is better."""
    no_worse = np.all(rows[:, None, :] <= rows[None, :, :], axis=2)
    better = np.any(rows[:, None, :] < rows[None, :, :], axis=2)
    flags: Flags = no_worse & better
    return flags


def objectives(swept: Sweep, chosen: Indices) -> Column:
    """[n, 6] of those candidates, all to be made small; an unknown figure counts as equal."""
    columns = [swept.values[name][chosen] for name in OBJECTIVES]
    columns[0] = -columns[0]
    return np.nan_to_num(np.stack(columns, axis=1), nan=0.0)


def pareto_front(rows: Column) -> Indices:
    """Places of the rows that no other row dominates; of equal rows the first.

    Rows are taken in lexicographic order: whoever dominates comes before whom it dominates.
    """
    _, left = np.unique(rows, axis=0, return_index=True)
    found = []
    while len(left):
        best, left = left[0], left[1:]
        found.append(best)
        left = left[np.any(rows[left] < rows[best], axis=1)]
    return np.sort(np.array(found, dtype=int))
