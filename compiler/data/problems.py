"""Bad lines of a data file, reported all together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NoReturn

from planner.errors import UsageError


class BadLine(ValueError):
    """Why one line cannot be used; becomes a `Problem` where the line number is known."""


@dataclass(frozen=True)
class Problem:
    path: Path
    line: int
    reason: str


def refuse(problems: Sequence[Problem], lines: int) -> NoReturn:
    """Raise UsageError naming every bad line of the `lines` read, alike neighbours together."""
    path = problems[0].path
    said = [f"{len(problems)} of {lines} lines of {path} cannot be used:"]
    ordered = enumerate(problems)
    for _, group in groupby(ordered, lambda item: (item[1].reason, item[1].line - item[0])):
        first, *others = (problem for _, problem in group)
        place = f"{first.line}-{others[-1].line}" if others else str(first.line)
        said.append(f"{path}:{place}: {first.reason}")
    raise UsageError("\n  ".join(said))
