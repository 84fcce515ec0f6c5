"""Numbers as people read them."""

from planner.quality import Quality


def gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def amount(count: float) -> str:
    """Bytes in the largest unit that keeps a digit before the point."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.3g} ms"
    if value < 1000:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 3600 else f"{value / 3600:.1f} h"


def many(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def points(quality: Quality) -> str:
    return f"{signed(quality.points)} +/- {quality.half_width:.1f} points"


def signed(value: float) -> str:
    """With its sign; what rounds to nothing has a plus."""
    return f"{round(value, 1) + 0.0:+.1f}"
