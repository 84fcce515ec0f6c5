"""Every candidate's numbers side by side: limits, dominance and the choice."""

from typing import Literal

from pydantic import JsonValue

from planner.plan import SCHEMA_VERSION, Frozen


class Axis(Frozen):
    """One quantity; `limit` is in the unit of the values."""

    key: str
    title: str
    unit: str
    lower_is_better: bool
    limit: float | None


class Point(Frozen):
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


class Frontier(Frozen):
    """`chosen` is the id of the recommended point; None where nothing is feasible."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    task: str
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    chosen: int | None
