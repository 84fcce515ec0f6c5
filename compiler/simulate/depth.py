"""Live bytes at a few small depths -> live bytes at any depth of a model of identical layers.

Every moment of a step, counted from a phase's start or from its end, is the same operation of the
same layer whatever the depth, and its live bytes are a whole number per layer. Three depths give
the slope and prove it, moment by moment; a difference in any of them is an error. The first and
last layers of every phase are among the moments, and what lies between is between them in bytes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compiler.simulate.live import KINDS, Segment

Rows = npt.NDArray[np.int64]
"""[moments, kinds]"""


class Peak(NamedTuple):
    """The moment with most live bytes: its phase, its micro-batch from 1, its bytes by kind."""

    phase: str
    micro_batch: int
    by_kind: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.by_kind.values())


class NotLinear(Exception):
    """The layers of the model are not alike."""


def peaks(segments: Sequence[Segment]) -> tuple[Peak, ...]:
    """The peak of every segment of one step, in order."""
    return tuple(_peak(segment, np.array(segment.rows, np.int64)) for segment in segments)


def peaks_at_depth(
    depths: Sequence[int], steps: Sequence[Sequence[Segment]], depth: int
) -> tuple[Peak, ...]:
    """The peaks at `depth`, from the steps at three equidistant depths; raises NotLinear."""
    if len({len(step) for step in steps}) != 1:
        raise NotLinear
    layers = (depth - depths[0]) // (depths[1] - depths[0])
    return tuple(
        _peak(parts[0], _extended([np.array(p.rows, np.int64) for p in parts], layers))
        for parts in zip(*steps, strict=True)
    )


def _extended(rows: Sequence[Rows], layers: int) -> Rows:
    """The moments of a phase at a depth `layers` steps above the smallest.

    Counted from the start they are the same operations up to the last layers, counted from the
    end back to the first ones; both must reach over two layers or more.
    """
    small, middle, large = rows
    grown = len(middle) - len(small)
    if len(large) - len(middle) != grown or grown < 0:
        raise NotLinear
    starts = _lines(rows, layers)
    ends = _lines([part[::-1] for part in rows], layers)
    if len(starts) + len(ends) < len(small) + grown:
        raise NotLinear
    return np.concatenate([starts, ends])


def _lines(rows: Sequence[Rows], layers: int) -> Rows:
    """The leading moments whose bytes grow by the same number from each depth to the next."""
    small, middle, large = (part[: len(rows[0])] for part in rows)
    slope = middle - small
    differing = (large - middle != slope).any(axis=1).nonzero()[0]
    kept = differing[0] if len(differing) else len(small)
    return (small + slope * layers)[:kept]


def _peak(segment: Segment, rows: Rows) -> Peak:
    most = rows[rows.sum(axis=1).argmax()]
    by_kind = dict(zip(KINDS, map(int, most), strict=True))
    return Peak(segment.phase, segment.micro_batch, by_kind)
