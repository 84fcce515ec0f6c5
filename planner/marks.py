"""How a picture marks a method: a colour and a shape, the same in every picture of a frontier.

Neighbours differ in both, and the lengths have no common divisor, so 42 methods stay apart; a
reader who sees no colours has the shapes.
"""

from collections import Counter
from typing import NamedTuple

from planner.method import methods
from planner.tradeoffs import Frontier, Point

COLOURS = ("#4d4fff", "#d18300", "#ee0059", "#1893f0", "#417500", "#9647b4", "#758ba2")
"""At least 3:1 against white and near-black, and apart under each kind of colour blindness."""
SHAPES = ("circle", "square", "triangle", "diamond", "wedge", "cross")


class Mark(NamedTuple):
    """`title` is the method's name for people."""

    method: str
    title: str
    colour: str
    shape: str


def method_of(point: Point) -> str:
    return str(point.candidate["method"])


def marks(frontier: Frontier) -> tuple[Mark, ...]:
    """The chosen method first, then by points on the frontier, within limits and in all."""
    counts: dict[str, Counter[str]] = {}
    for point in frontier.points:
        count = counts.setdefault(method_of(point), Counter())
        count["chosen"] += point.id == frontier.chosen
        count["frontier"] += point.feasible and point.on_frontier
        count["feasible"] += point.feasible
        count["all"] += 1

    def prominence(name: str) -> tuple[float | str, ...]:
        count = counts[name]
        return (-count["chosen"], -count["frontier"], -count["feasible"], -count["all"], name)

    known = methods()
    return tuple(
        Mark(
            method=name,
            title=known[name].title if name in known else name,
            colour=COLOURS[index % len(COLOURS)],
            shape=SHAPES[index % len(SHAPES)],
        )
        for index, name in enumerate(sorted(counts, key=prominence))
    )
