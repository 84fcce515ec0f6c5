"""What completed builds teach of this machine: a factor on a prediction, with its band.

The factor is the median of measured over predicted, on a logarithmic scale, so that one odd build
moves it little and twice as slow weighs as much as twice as fast. The band is what the next build
falls within: two spreads of a single build, widened by the uncertainty of the median.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from planner.calibration import this_machine
from planner.catalog import read_object
from planner.documents import dump, validated, write
from planner.errors import UsageError
from planner.home import CORRECTIONS, home
from planner.section import Section
from planner.spec import Hardware

if TYPE_CHECKING:
    from planner.store import Build

LEAST_BUILDS = 3
SPREAD_OF_DEVIATION = 1.4826
"""Standard deviation of a normal distribution in median absolute deviations."""
LEAST_SPREAD = 0.02
"""Of a build's logarithm: timers and other programs are never quieter."""


class Correction(Section):
    """Of one quantity on one device, as this machine trains: measured = factor x predicted."""

    processor: str
    hardware: str
    quantity: str
    builds: int
    factor: float
    low: float
    high: float


class Corrections(Section):
    schema_version: Literal[1] = 1
    corrections: tuple[Correction, ...] = ()

    def of(self, quantity: str, hardware: str | None, processor: str) -> Correction | None:
        return next(
            (
                found
                for found in self.corrections
                if (found.quantity, found.hardware, found.processor)
                == (quantity, hardware, processor)
            ),
            None,
        )


def hardware_key(choice: str | Hardware | None) -> str | None:
    """Under which a spec's hardware is stored; None where it was left open."""
    return choice.model_dump_json() if isinstance(choice, Hardware) else choice


def learn(builds: "Sequence[Build]") -> tuple[Corrections, list[str]]:
    """What is known, and a sentence for each quantity of which too few builds are."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for build in builds:
        key = (build.processor, build.hardware, build.quantity)
        groups.setdefault(key, []).append(math.log(build.measured / build.predicted))
    found = []
    short = []
    for (processor, hardware, quantity), logarithms in groups.items():
        if len(logarithms) < LEAST_BUILDS:
            short.append(
                f"{quantity} on '{hardware}': {LEAST_BUILDS} builds are needed, and "
                f"{len(logarithms)} stored"
            )
            continue
        found.append(_correction(processor, hardware, quantity, logarithms))
    return Corrections(corrections=tuple(found)), short


def _correction(
    processor: str, hardware: str, quantity: str, logarithms: Sequence[float]
) -> Correction:
    middle, count = median(logarithms), len(logarithms)
    deviation = median(abs(value - middle) for value in logarithms)
    spread = max(SPREAD_OF_DEVIATION * deviation, LEAST_SPREAD) * math.sqrt(1 + 1 / count)
    return Correction(
        processor=processor,
        hardware=hardware,
        quantity=quantity,
        builds=count,
        factor=math.exp(middle),
        low=math.exp(middle - 2 * spread),
        high=math.exp(middle + 2 * spread),
    )


def learn_from_builds() -> tuple[Corrections, list[str]]:
    """From every build in the store, and saved for the planner; raises UsageError without any."""
    from planner.store import read  # noqa: PLC0415, a plan needs no SQLite

    builds = read()
    if not builds:
        raise UsageError(
            "no build has been completed on this machine", hint="compiler build plan.json …"
        )
    corrections, short = learn(builds)
    path = home() / CORRECTIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, dump(corrections))
    return corrections, short


def correction(quantity: str, hardware: str | None, path: Path | None = None) -> Correction | None:
    """What the builds of this machine say of that quantity on that device, if anything."""
    path = home() / CORRECTIONS if path is None else path
    if hardware is None or not path.is_file():
        return None
    known = validated(Corrections, read_object(path), path.name)
    return known.of(quantity, hardware, this_machine().processor)
