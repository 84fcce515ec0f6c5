"""Every error a user can cause or meet, and the exit code it ends a command with.

ParetuneError            1  failure
├── UsageError           2  bad usage, spec or data
├── InfeasibleError      3  no plan satisfies the spec
├── IncompatibleError    4  parts that do not belong together, or a failed verification
└── DriftError           5  a plan and its inputs have come apart
"""

from collections.abc import Iterable
from typing import NamedTuple


class ParetuneError(Exception):
    """One sentence that states the fact and the offending value; `hint` says what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(ParetuneError):
    exit_code = 2


class Relaxation(NamedTuple):
    """What would make a spec feasible: in words, and as new values of the spec's dotted keys."""

    text: str
    updates: dict[str, object]


class InfeasibleError(ParetuneError):
    """`relaxations` are the nearest, each checked to be feasible."""

    exit_code = 3

    def __init__(
        self, message: str, *, hint: str | None = None, relaxations: tuple[Relaxation, ...] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.relaxations = relaxations


class IncompatibleError(ParetuneError):
    exit_code = 4


class DriftError(ParetuneError):
    exit_code = 5


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The hint that names the nearest of the known names; None where none is near."""
    from difflib import get_close_matches  # noqa: PLC0415, needed only where something is wrong

    near = get_close_matches(name, list(known), n=1)
    return f"did you mean '{near[0]}'?" if near else None
