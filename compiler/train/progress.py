"""What training shows: a live bar on a terminal, a line now and then in a log, or nothing."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

LINE_SECONDS = 10.0


@dataclass(frozen=True)
class Status:
    """After a step: mean loss per token of the step, and the newest validation loss, if any."""

    step: int
    total_steps: int
    loss: float
    validation_loss: float | None
    tokens_per_second: float
    seconds_left: float


class Reporter(Protocol):
    def step(self, status: Status) -> None: ...

    def say(self, text: str) -> None: ...


class Silent:
    def step(self, status: Status) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class Lines:
    """A line for the first step, the last, and every LINE_SECONDS between them."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self._label = label
        self._stream = stream
        self._next_line = 0.0

    def step(self, status: Status) -> None:
        if status.step < status.total_steps and time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + LINE_SECONDS
        done = f"step {status.step}/{status.total_steps}"
        self._write(f"{done}  {figures(status)}")

    def say(self, text: str) -> None:
        self._write(text)

    def _write(self, text: str) -> None:
        self._stream.write(f"{self._label}: {text}\n")
        self._stream.flush()


class Bar:
    def __init__(self, label: str, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID = bar.add_task(label, total=None, figures="")

    def step(self, status: Status) -> None:
        self._bar.update(
            self._task,
            completed=status.step,
            total=status.total_steps,
            figures=figures(status),
        )

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)


@contextmanager
def report(label: str, stream: TextIO | None = None, *, quiet: bool = False) -> Iterator[Reporter]:
    """The reporter that suits the stream (stderr unless given), until the block ends."""
    stream = stream or sys.stderr
    if quiet:
        yield Silent()
    elif stream.isatty():
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        with Progress(*columns, console=Console(file=stream)) as bar:
            yield Bar(label, bar)
    else:
        yield Lines(label, stream)


def figures(status: Status) -> str:
    """Loss, tokens/s and time left in words."""
    validation = status.validation_loss
    return "  ".join(
        [
            f"loss {status.loss:.4f}",
            *([] if validation is None else [f"validation {validation:.4f}"]),
            f"{status.tokens_per_second:,.0f} tokens/s",
            f"{clock(status.seconds_left)} left",
        ]
    )


def clock(seconds: float) -> str:
    """1:05 or 2:00:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
