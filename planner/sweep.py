"""Every candidate at once, in columns: method x rank x targets x format x export x batch x mode.

`search` keeps the best way to cut a training step; a sweep keeps all of them. The formulas are the
same: they are given a method's adapters as one adapter whose costs are columns.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from planner.candidates import Adapter, Form, Refusal, adapters, form_quality, forms
from planner.cost.adapter import AdapterCost
from planner.cut import Micro, cuts, micro
from planner.evaluate import measure
from planner.resolve import Scenario

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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
    adapter: "Indices"
    form: "Indices"
    cut: "Indices"
    values: "dict[str, Column]"
    quality_half_width: "Column"
    broken: "dict[str, Flags]"

    @property
    def feasible(self) -> "Flags":
        import numpy as np  # noqa: PLC0415, a plan needs none of it

        flags: Flags = ~np.any([self.broken[name] for name in CONSTRAINTS], axis=0)
        return flags

    def __len__(self) -> int:
        return len(self.adapter)


def sweep(scenario: Scenario, *, unbuildable: bool = False) -> Sweep:
    """Evaluate every candidate of the scenario."""
    import numpy as np  # noqa: PLC0415, a plan needs none of it

    known = [a for a in adapters(scenario, unbuildable=unbuildable) if isinstance(a, Adapter)]
    all_cuts = [Cut(mode, size) for mode, sizes in cuts(scenario) for size in sizes]
    all_forms: dict[Form, int] = {}
    blocks: list[dict[str, Any]] = []
    start = 0
    for _, group in groupby(known, key=lambda adapter: adapter.method.name):
        members = list(group)
        places = np.arange(start, start + len(members))
        start += len(members)
        blocks += _blocks(scenario, members, places, all_cuts, all_forms)
    joined = {
        name: np.concatenate([block[name] for block in blocks]) if blocks else np.zeros(0)
        for name in (*_PLACES, *OBJECTIVES, "quality_half_width", *CONSTRAINTS)
    }
    return Sweep(
        adapters=tuple(known),
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


def _blocks(
    scenario: Scenario,
    members: Sequence[Adapter],
    places: "Indices",
    all_cuts: Sequence[Cut],
    all_forms: dict[Form, int],
) -> Iterable[dict[str, Any]]:
    """The candidates of one method, a block per form and cut."""
    import numpy as np  # noqa: PLC0415, a plan needs none of it

    micros: dict[tuple[str, Cut], Micro] = {}
    allowed: dict[Form, list[int]] = {}
    for place, member in enumerate(members):
        for form in forms(scenario, member):
            if not isinstance(form, Refusal):
                allowed.setdefault(form, []).append(place)
    whole = _columns(members)
    for form, kept in allowed.items():
        column = whole if len(kept) == len(members) else _columns([members[i] for i in kept])
        quality = form_quality(scenario, form)
        served = measure(scenario, column, form)
        shared = {
            "adapter": places[kept],
            "form": all_forms.setdefault(form, len(all_forms)),
            "quality_points": np.array([members[i].quality.points for i in kept]) + quality.points,
            "quality_half_width": np.hypot(
                [members[i].quality.half_width for i in kept], quality.half_width
            ),
            "serving_bytes_per_tenant": served.required_bytes / scenario.active_tenants,
            "latency_seconds": _known(
                served.per_token_seconds if scenario.causal else served.first_token_seconds
            ),
            "storage_bytes": served.storage_bytes,
            "serving memory": served.required_bytes > scenario.serving_budget_bytes,
            "first token": _over(served.first_token_seconds, scenario.first_token_seconds),
            "per token": _over(served.per_token_seconds, scenario.per_token_seconds),
        }
        for place, cut in enumerate(all_cuts):
            key = (form.format, cut)
            if len(kept) < len(members) or key not in micros:
                micros[key] = micro(
                    scenario, column, form.format, cut.checkpointing, cut.batch_size
                )
            found = micros[key]
            own = {
                "cut": place,
                "training_bytes": found.required_bytes,
                "training_seconds": _known(found.step_seconds),
                "training memory": found.required_bytes > scenario.training_budget_bytes,
            }
            yield {
                name: np.broadcast_to(value, len(kept)) for name, value in (shared | own).items()
            }


def _columns(members: Sequence[Adapter]) -> Adapter:
    """The adapters of one method as one, whose costs are columns."""
    import numpy as np  # noqa: PLC0415, a plan needs none of it

    fields: list[Any] = [
        np.array(field, float) for field in zip(*(m.cost for m in members), strict=True)
    ]
    for field in fields:
        # A formula that adds to a column in place would spoil it for the next one.
        field.flags.writeable = False
    return members[0]._replace(cost=AdapterCost(*fields))


def _known(seconds: Any) -> Any:  # noqa: ANN401, a number, a column or None
    return float("nan") if seconds is None else seconds


def _over(seconds: Any, limit: float | None) -> Any:  # noqa: ANN401, a number, a column or None
    return False if seconds is None or limit is None else seconds > limit


def dominance(rows: "npt.NDArray[np.float64]") -> "Flags":
    """[n, n]: whether row i is nowhere worse than row j and somewhere better; lower is better."""
    import numpy as np  # noqa: PLC0415, a plan needs none of it

    no_worse = np.all(rows[:, None, :] <= rows[None, :, :], axis=2)
    better = np.any(rows[:, None, :] < rows[None, :, :], axis=2)
    flags: Flags = no_worse & better
    return flags


def objectives(swept: Sweep, chosen: "Indices") -> "npt.NDArray[np.float64]":
    """[n, 6] of those candidates, all to be made small; an unknown figure counts as equal."""
    import numpy as np  # noqa: PLC0415, a plan needs none of it

    columns = [swept.values[name][chosen] for name in OBJECTIVES]
    columns[0] = -columns[0]
    return np.nan_to_num(np.stack(columns, axis=1), nan=0.0)


def pareto_front(rows: "npt.NDArray[np.float64]") -> "Indices":
    """Places of the rows that no other row dominates; of equal rows the first.

    Rows are taken in lexicographic order: whoever dominates comes before whom it dominates.
    """
    import numpy as np  # noqa: PLC0415, a plan needs none of it

    _, left = np.unique(rows, axis=0, return_index=True)
    found = []
    while len(left):
        best, left = left[0], left[1:]
        found.append(best)
        left = left[np.any(rows[left] < rows[best], axis=1)]
    return np.sort(np.array(found, dtype=int))
