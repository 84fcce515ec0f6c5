"""The scale of one quantity in a picture: its ends, linear or logarithmic, and round ticks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from planner.tradeoffs import Axis
from planner.units import amount, seconds

DECADE = 10.0
"""Positive values that span more are drawn logarithmically."""
MARGINS = (0.12, 0.05)
"""Of the span: beyond the better end, where the names of the best points stand, and the worse."""
MOST_TICKS = 9
CLOCK = (60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 18000.0, 36000.0, 86400.0)
"""Round numbers of seconds beyond a minute; days follow."""


class Scale(NamedTuple):
    """Ends and ticks in the unit of the values."""

    low: float
    high: float
    logarithmic: bool
    ticks: tuple[float, ...]


def scale(axis: Axis, feasible: Sequence[float], others: Sequence[float] = ()) -> Scale:
    """The scale that shows every feasible value, and of the others and the limit what is near.

    Near is within the feasible span of its ends; without a feasible value all are shown.
    """
    values = feasible or others
    low, high = min(values, default=0.0), max(values, default=1.0)
    logarithmic = low > 0 and high / low >= DECADE
    room = (high - low) or abs(high) or 1.0
    reach = (low * low / high, high * high / low) if logarithmic else (low - room, high + room)
    near = [
        value
        for value in (*others, *([] if axis.limit is None else [axis.limit]))
        if reach[0] <= value <= reach[1]
    ]
    low, high = min(low, *near, high), max(high, *near, low)
    before, after = MARGINS if axis.lower_is_better else MARGINS[::-1]
    if logarithmic:
        ratio = high / low
        low, high = low / ratio**before, high * ratio**after
    else:
        span = (high - low) or room
        low, high = low - span * before, high + span * after
    return Scale(low, high, logarithmic, ticks(axis.unit, low, high, logarithmic=logarithmic))


def ticks(unit: str, low: float, high: float, *, logarithmic: bool) -> tuple[float, ...]:
    """At most MOST_TICKS round numbers between the ends, evenly spaced on the scale."""
    if not logarithmic:
        span = high - low
        step = next(n for n in round_numbers(unit, span / 1000, span) if span / n < MOST_TICKS)
        first, last = math.ceil(low / step), math.floor(high / step)
        return tuple(step * count for count in range(first, last + 1))
    numbers = round_numbers(unit, low, high)
    for every in range(1, len(numbers) + 1):
        kept = tuple(n for n in numbers[::every] if low <= n <= high)
        if len(kept) <= MOST_TICKS:
            return kept
    return ()


def round_numbers(unit: str, low: float, high: float) -> list[float]:
    """Those that surround low to high, both positive: powers of 2 of bytes, else 1, 2 and 5."""
    if unit == "bytes":
        return [2.0**power for power in _powers(low, high, 2)]
    numbers = [digit * 10.0**power for power in _powers(low, high, 10) for digit in (1, 2, 5)]
    if unit == "seconds" and high > CLOCK[0]:
        days = [CLOCK[-1] * n for n in numbers if n > 1]
        numbers = [n for n in numbers if n < CLOCK[0]] + [*CLOCK, *days]
    return numbers


def _powers(first: float, last: float, base: int) -> range:
    return range(math.floor(math.log(first, base)), math.ceil(math.log(last, base)) + 1)


def shown(unit: str, value: float) -> str:
    """A value of that unit as people read it."""
    if unit == "bytes":
        return amount(value).replace(".0 ", " ")
    if unit == "seconds":
        return seconds(value).replace(".0 ", " ") if value > 0 else "0 s"
    if unit == "points":
        return f"{value:+.1f}".replace(".0", "").replace("-", "\N{MINUS SIGN}") if value else "0"
    return f"{value:,.4g} {unit}".strip()
