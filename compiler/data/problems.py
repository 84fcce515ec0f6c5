"""Bad lines of a data file, reported all together."""

from collections.abc import Sequence
from dataclasses import dataclass
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

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


def refuse(problems: Sequence[Problem], lines: int) -> NoReturn:
    """Raise UsageError naming every bad line of the `lines` read."""
    path = problems[0].path
    count = f"{len(problems)} of {lines} lines of {path} cannot be used"
    raise UsageError("\n  ".join([f"{count}:", *map(str, problems)]))
