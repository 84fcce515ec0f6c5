"""A frontier as a picture: two axes of every candidate, the limits, the frontier and the choice."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from planner.documents import write
from planner.errors import UsageError
from planner.marks import Mark, marks, method_of
from planner.quality import TIE_POINTS
from planner.scale import Scale, scale, shown
from planner.tradeoffs import Axis, Frontier, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNDATED = {"png": "Creation Time", "svg": "Date", "pdf": "CreationDate"}
"""File endings, and the entry left out so that equal frontiers give equal files."""
SHAPES = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "wedge": "v",
    "cross": "P",
}
INK, MUTED, GRID, SHADE, TIE = "#16191f", "#5b6472", "#e6e9ee", "#eef0f4", "#e9ebff"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": "#c3c9d2",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "svg.hashsalt": "paretune",
}
LEGEND_ROWS = 32
NAME_ROOM = (0.1, 0.05)
"""Fractions of the frame's width and height that a point's name takes."""
TIERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("chosen", {"markerfacecolor": "none", "color": INK, "markersize": 9}),
    ("on the frontier", {"markersize": 6.5}),
    ("dominated", {"alpha": 0.4, "markersize": 4}),
    ("breaks a limit", {"markerfacecolor": "none", "alpha": 0.5, "markersize": 4}),
    (f"within {TIE_POINTS:g} points: a tie", {"marker": "s", "color": TIE, "markersize": 9}),
)


class View(NamedTuple):
    """Two axes and the points whose values are known on both."""

    x: Axis
    y: Axis
    points: tuple[Point, ...]
    chosen: Point | None


def draw(
    frontier: Frontier, path: Path, *, x: str = "training_bytes", y: str = "quality_points"
) -> None:
    """Write the picture of two axes, in the format that the file's ending names.

    Raises UsageError for another ending, an unknown axis, or where matplotlib is missing.
    """
    ending = path.suffix.removeprefix(".").lower()
    if ending not in UNDATED:
        known = ", ".join(f".{known}" for known in UNDATED)
        raise UsageError(f"cannot draw '{path.name}'; pictures end in {known}")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError(
            "drawing a picture needs matplotlib, which is not installed",
            hint="pip install 'paretune[plot]'; --html needs nothing more",
        ) from None
    seen = view(frontier, x, y)
    picture = io.BytesIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 6.2), dpi=160)
        _paint(figure, frontier, seen)
        figure.savefig(picture, format=ending, metadata={UNDATED[ending]: None})
    write(path, picture.getvalue())


def view(frontier: Frontier, x: str, y: str) -> View:
    """The points that can be drawn on the axes of those keys; raises UsageError."""
    known = {axis.key: axis for axis in frontier.axes}
    for key in (x, y):
        if key not in known:
            raise UsageError(f"unknown axis '{key}'; axes are {', '.join(known)}")
    points = tuple(
        point
        for point in frontier.points
        if point.values.get(x) is not None and point.values.get(y) is not None
    )
    chosen = next((point for point in points if point.id == frontier.chosen), None)
    return View(known[x], known[y], points, chosen)


def envelope(seen: View) -> list[Point]:
    """The feasible points that none beats on both axes, from the best x to the best y."""
    sign_x, sign_y = (1 if axis.lower_is_better else -1 for axis in (seen.x, seen.y))
    ranked = sorted(
        (sign_x * _at(point, seen.x), sign_y * _at(point, seen.y), point.id, point)
        for point in seen.points
        if point.feasible
    )
    found: list[Point] = []
    best = math.inf
    for _, loss, _, point in ranked:
        if loss < best:
            best = loss
            found.append(point)
    return found


def _at(point: Point, axis: Axis) -> float:
    value = point.values[axis.key]
    assert value is not None, f"point {point.id} has no {axis.key}"
    return value


def _place(seen: View, point: Point) -> tuple[float, float]:
    return _at(point, seen.x), _at(point, seen.y)


def _paint(figure: "Figure", frontier: Frontier, seen: View) -> None:
    axes = figure.add_axes((0.085, 0.095, 0.685, 0.76))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    found = marks(frontier)
    for name, axis in (("x", seen.x), ("y", seen.y)):
        feasible = [_at(point, axis) for point in seen.points if point.feasible]
        others = [_at(point, axis) for point in seen.points if not point.feasible]
        drawn = scale(axis, feasible, others)
        _scale(axes, name, axis, drawn)
        _ties(axes, name, axis, feasible)
        _limit(axes, name, axis, drawn)
    for mark in found:
        _scatter(axes, seen, mark)
    _line(axes, seen, found)
    _choice(axes, seen, found)
    places = [_fraction(axes, _place(seen, point)) for point in seen.points]
    outside = sum(not (0 <= x <= 1 and 0 <= y <= 1) for x, y in places)
    _titles(figure, frontier, outside)
    _legend(figure, seen, found)


def _scale(axes: "Axes", name: str, axis: Axis, drawn: Scale) -> None:
    better = "less is better" if axis.lower_is_better else "more is better"
    notes = [better, "logarithmic"] if drawn.logarithmic else [better]
    if axis.limit is not None and not drawn.low < axis.limit < drawn.high:
        notes.append(f"limit {shown(axis.unit, axis.limit)}")
    axes.set(
        **{
            f"{name}scale": "log" if drawn.logarithmic else "linear",
            f"{name}lim": (drawn.low, drawn.high),
            f"{name}label": f"{axis.title[:1].upper()}{axis.title[1:]} ({', '.join(notes)})",
        }
    )
    side = axes.xaxis if name == "x" else axes.yaxis
    side.set_ticks(drawn.ticks, [shown(axis.unit, tick) for tick in drawn.ticks])
    side.set_ticks([], minor=True)


def _ties(axes: "Axes", name: str, axis: Axis, feasible: list[float]) -> None:
    """Where quality is within the noise of the best feasible point."""
    if axis.unit != "points" or not feasible:
        return
    best = max(feasible)
    shade = axes.axvspan if name == "x" else axes.axhspan
    shade(best - TIE_POINTS, best, color=TIE, linewidth=0, zorder=0)


def _limit(axes: "Axes", name: str, axis: Axis, drawn: Scale) -> None:
    """The limit as a line, and the side that breaks it in grey."""
    if axis.limit is None or not drawn.low < axis.limit < drawn.high:
        return
    shade, line = (axes.axvspan, axes.axvline) if name == "x" else (axes.axhspan, axes.axhline)
    beyond = drawn.high if axis.lower_is_better else drawn.low
    shade(axis.limit, beyond, color=SHADE, linewidth=0, zorder=0)
    line(axis.limit, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=2)
    _edge_text(axes, name, f"limit {shown(axis.unit, axis.limit)}", axis.limit)


def _edge_text(axes: "Axes", name: str, text: str, value: float) -> None:
    """Beside a line at that value, just inside the frame: upright along x, level along y."""
    if name == "x":
        where: dict[str, Any] = {"rotation": 90, "ha": "left", "va": "bottom"}
        place, offset, coordinates = (value, 0.0), (2, 4), ("data", "axes fraction")
    else:
        where = {"ha": "right", "va": "bottom"}
        place, offset, coordinates = (1.0, value), (-3, 2), ("axes fraction", "data")
    _text(axes, text, place, offset, xycoords=coordinates, fontsize=8, color=MUTED, **where)


def _scatter(axes: "Axes", seen: View, mark: Mark) -> None:
    """One method's points: hollow where a limit is broken, faint where dominated."""
    own = [point for point in seen.points if method_of(point) == mark.method]
    tiers: tuple[tuple[list[Point], dict[str, Any]], ...] = (
        (
            [p for p in own if not p.feasible],
            {"s": 14, "facecolors": "none", "edgecolors": mark.colour, "alpha": 0.45, "zorder": 3},
        ),
        (
            [p for p in own if p.feasible and not p.on_frontier and p is not seen.chosen],
            {"s": 15, "color": mark.colour, "alpha": 0.35, "linewidths": 0, "zorder": 4},
        ),
        (
            [p for p in own if p.feasible and (p.on_frontier or p is seen.chosen)],
            {"s": 36, "color": mark.colour, "edgecolors": "white", "linewidths": 0.7, "zorder": 6},
        ),
    )
    for points, look in tiers:
        if points:
            places = [_place(seen, point) for point in points]
            axes.scatter(*zip(*places, strict=True), marker=SHAPES[mark.shape], **look)


def _line(axes: "Axes", seen: View, found: tuple[Mark, ...]) -> None:
    """The best that is feasible on these two axes, with names where there is room."""
    best = envelope(seen)
    if not best:
        return
    axes.plot(
        *zip(*(_place(seen, point) for point in best), strict=True),
        color=INK,
        linewidth=1.2,
        alpha=0.55,
        drawstyle="steps-post",
        zorder=5,
    )
    wanted = {_short(point, found): point for point in best if point is not seen.chosen}
    taken = [_fraction(axes, _place(seen, seen.chosen))] if seen.chosen else []
    for name, point in reversed(wanted.items()):
        x, y = _fraction(axes, _place(seen, point))
        if x > NAME_ROOM[0] and all(
            abs(x - a) > NAME_ROOM[0] or abs(y - b) > NAME_ROOM[1] for a, b in taken
        ):
            taken.append((x, y))
            _text(axes, name, _place(seen, point), (-5, 5), ha="right", fontsize=8)


def _fraction(axes: "Axes", place: tuple[float, float]) -> tuple[float, float]:
    """A place as fractions of the frame's width and height."""
    x, y = axes.transAxes.inverted().transform(axes.transData.transform(place))
    return float(x), float(y)


def _choice(axes: "Axes", seen: View, found: tuple[Mark, ...]) -> None:
    """A ring, the band of its quality, and its name."""
    if seen.chosen is None:
        return
    place, half = _place(seen, seen.chosen), seen.chosen.quality_half_width
    bands: dict[str, Any] = {
        f"{name}err": half for name, axis in (("x", seen.x), ("y", seen.y)) if axis.unit == "points"
    }
    axes.errorbar(*place, **bands, color=INK, linewidth=1.2, capsize=3, zorder=7)
    axes.scatter(*place, s=150, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=8)
    side: dict[str, Any] = {"ha": "right"} if _fraction(axes, place)[0] > 0.7 else {"ha": "left"}
    offset = (-10 if side["ha"] == "right" else 10, -15)
    name = f"chosen: {_short(seen.chosen, found)}"
    _text(axes, name, place, offset, fontsize=9.5, fontweight="bold", **side)


def _text(
    axes: "Axes",
    text: str,
    place: tuple[float, float],
    offset: tuple[float, float],
    **look: Any,  # noqa: ANN401
) -> None:
    """Text that stays legible over whatever is drawn, `offset` points from a place."""
    from matplotlib.patheffects import withStroke

    look["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]
    axes.annotate(text, place, offset, textcoords="offset points", zorder=9, **look)


def _short(point: Point, found: tuple[Mark, ...]) -> str:
    title = next(mark.title for mark in found if mark.method == method_of(point))
    rank = point.candidate.get("rank")
    return title if rank is None else f"{title} r{rank}"


def _titles(figure: "Figure", frontier: Frontier, outside: int) -> None:
    points = frontier.points
    feasible = sum(point.feasible for point in points)
    best = sum(point.feasible and point.on_frontier for point in points)
    chosen = next((p for p in points if p.id == frontier.chosen), None)
    lines = (
        f"Chosen: {chosen.label}" if chosen else "No candidate keeps every limit",
        f"{len(points):,} candidates shown, {feasible:,} within every limit, "
        f"{best:,} on the frontier"
        + (f", {outside:,} over a limit and far outside the picture" if outside else ""),
    )
    figure.text(0.02, 0.95, f"{frontier.model}: {frontier.task}", fontsize=13, fontweight="bold")
    figure.text(0.02, 0.915, lines[0])
    figure.text(0.02, 0.883, lines[1], color=MUTED)


def _legend(figure: "Figure", seen: View, found: tuple[Mark, ...]) -> None:
    from matplotlib.lines import Line2D

    drawn = {method_of(point) for point in seen.points}
    looks: list[tuple[str, dict[str, Any]]] = [
        (m.title, {"marker": SHAPES[m.shape], "color": m.colour, "markeredgewidth": 0})
        for m in found
        if m.method in drawn
    ]
    looks += [("", {"alpha": 0}), *TIERS]
    dot: dict[str, Any] = {"linestyle": "none", "markersize": 6, "marker": "o", "color": MUTED}
    columns = 1 + len(looks) // LEGEND_ROWS
    figure.legend(
        handles=[Line2D([], [], label=label, **dot | look) for label, look in looks],
        loc="upper left",
        bbox_to_anchor=(0.78, 0.87),
        frameon=False,
        fontsize=8.5 if columns == 1 else 7,
        labelspacing=0.35,
        handletextpad=0.2,
        columnspacing=0.5,
        ncols=columns,
    )
