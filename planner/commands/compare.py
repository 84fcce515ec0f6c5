"""Set two plans side by side: what differs, by how much, and whether that is more than noise."""

from collections.abc import Sequence
from pathlib import Path

import click

from planner.catalog import read_object
from planner.documents import load_plan, load_spec
from planner.options import as_json, print_json
from planner.plan import Figure, Plan
from planner.recommendation import recommend
from planner.render import figure_value, label
from planner.section import Section


@click.command("compare", epilog="Example: planner compare plan-a.json plan-b.json")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@as_json
def command(*, first: Path, second: Path, as_json: bool) -> None:
    """Compare FIRST with SECOND; each is a plan, or a spec whose plan is made first."""
    plans = (_plan(first), _plan(second))
    differing = {
        "model": _differing(*(plan.model for plan in plans)),
        "candidate": _differing(*(plan.candidate for plan in plans)),
        "training": _differing(*(plan.training for plan in plans)),
    }
    names = list(dict.fromkeys((*plans[0].figures, *plans[1].figures)))
    rows = {name: [plan.figures.get(name) for plan in plans] for name in names}
    if as_json:
        figures = {
            name: {
                "first": one.model_dump() if one else None,
                "second": other.model_dump() if other else None,
                "distinct": distinct(one, other),
            }
            for name, (one, other) in rows.items()
        }
        print_json(**differing, figures=figures)
        return
    chosen = [
        (key if section == "candidate" else f"{section}.{key}", str(one), str(other), "")
        for section, values in differing.items()
        for key, (one, other) in values.items()
    ]
    measured = [
        (label(name), *(_shown(name, figure) for figure in pair), _mark(*pair))
        for name, pair in rows.items()
        if pair[0] != pair[1]
    ]
    if not chosen and not measured:
        click.echo("no difference")
        return
    click.echo(_table([("", first.name, second.name, ""), *chosen, ("", "", "", ""), *measured]))


def _differing(one: Section, other: Section) -> dict[str, list[object]]:
    """Values of the fields in which they differ; a model's shape shows in the figures."""
    told_in_figures = {"shape", "config_digest"}
    first, second = (each.model_dump(exclude=told_in_figures) for each in (one, other))
    return {key: [first[key], second[key]] for key in first if first[key] != second[key]}


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _shown(name: str, figure: Figure | None) -> str:
    if figure is None:
        return "none"
    return "unknown" if figure.value is None else figure_value(name, figure)


def _mark(one: Figure | None, other: Figure | None) -> str:
    return "" if distinct(one, other) else "within the bands"


def _plan(path: Path) -> Plan:
    return load_plan(path) if "candidate" in read_object(path) else recommend(load_spec(path))


def distinct(one: Figure | None, other: Figure | None) -> bool:
    """Whether the bands of two known figures lie apart; without a band a number is itself."""
    if one is None or other is None or one.value is None or other.value is None:
        return one != other
    (low_one, high_one), (low_other, high_other) = _band(one, one.value), _band(other, other.value)
    return high_one < low_other or high_other < low_one


def _band(found: Figure, value: float) -> tuple[float, float]:
    low = value if found.low is None else found.low
    return low, value if found.high is None else found.high
