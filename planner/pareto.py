"""Choosing among feasible candidates: one criterion after the other, ties passed on to the next.

Quality first; candidates within the noise of the best are ties, broken by memory, by latency and
then by simplicity. A stated priority changes the order or the width of the ties.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from planner.adapters import Adapter
from planner.evaluate import Evaluated, micro_of
from planner.method import method
from planner.quality import REFERENCE, TIE_POINTS, steps_share
from planner.scenario import Scenario
from planner.spec import Priority

DEFAULT_RANK = 16
"""Ranks 16 to 64 recover most of small and medium instruction tuning (claim-rank)."""
MEMORY_TIE = 0.10
"""Of the budget: less than this saved is not worth a choice."""
LATENCY_TIE = 0.10
PRIORITY_POINTS = 4.0
"""Quality given up at most for another priority; assumed."""

Score = Callable[[Scenario, Evaluated], float]


class Criterion(NamedTuple):
    """Lower scores are better; within `tie` of the best is a tie.

    `natural` turns a score into the number a person reads, in `unit`.
    """

    name: str
    score: Score
    tie: float
    unit: str
    natural: Callable[[float], float] = float


def memory_share(scenario: Scenario, found: Evaluated) -> float:
    """The larger of the shares that training at its thriftiest and serving take of their budgets.

    Larger batches use what is free, so they are no reason against a candidate.
    """
    return max(
        found.training_required_bytes / scenario.training_budget_bytes,
        found.serving.required_bytes / scenario.serving_budget_bytes,
    )


def latency(scenario: Scenario, found: Evaluated) -> float:
    """Log seconds per token, or of the one pass of a classifier; 0 where unknown."""
    serving = found.serving
    seconds = serving.per_token_seconds if scenario.causal else serving.first_token_seconds
    return math.log(seconds) if seconds else 0.0


def lost_points(_: Scenario, found: Evaluated) -> float:
    return -found.points


def storage(_: Scenario, found: Evaluated) -> float:
    return math.log(found.serving.storage_bytes)


def training_time(scenario: Scenario, found: Evaluated) -> float:
    """Log seconds of a step times the steps that the method is expected to need; 0 if unknown."""
    seconds = micro_of(scenario, found).step_seconds
    return math.log(seconds * steps_share(found.adapter.method.name)) if seconds else 0.0


def simplicity(scenario: Scenario, found: Evaluated) -> float:
    """How far from plain LoRA, rank 16, all linears, nothing recomputed."""
    adapter = found.adapter
    rank = abs(math.log2(adapter.rank / DEFAULT_RANK)) / 4 if adapter.rank else 0.0
    return (
        3.0 * method_distance(adapter)
        + rank
        + (adapter.targets != ("all-linear",))
        + (micro_of(scenario, found).checkpointing != "none")
        + (found.form.export == "merged")
        + (found.form.precision == "fast")
        # On a 4-bit base the recipe with a name comes before its parts.
        + 0.1 * (found.form.format == "nf4" and adapter.method.formats != ("nf4",))
    )


def method_distance(adapter: Adapter) -> int:
    """Declared fields in which the method differs from LoRA."""
    lora, found = method(REFERENCE), adapter.method
    return sum(
        getattr(found, name) != getattr(lora, name)
        for name in ("tensors", "update", "scaling", "needs_weight", "trains_base")
    )


def _negated(score: float) -> float:
    return -score


def criteria(priority: Priority) -> tuple[Criterion, ...]:
    """In order of application."""
    quality = Criterion("quality", lost_points, TIE_POINTS, "points", _negated)
    memory = Criterion("memory", memory_share, MEMORY_TIE, "share of the budget")
    speed = Criterion("latency", latency, LATENCY_TIE, "seconds", math.exp)
    disk = Criterion("storage", storage, 0.02, "bytes", math.exp)
    hurry = Criterion("training time", training_time, LATENCY_TIE, "seconds", math.exp)
    simple = Criterion("simplicity", simplicity, 0.0, "distance from plain LoRA")
    near = quality._replace(tie=PRIORITY_POINTS)
    first: dict[Priority, tuple[Criterion, ...]] = {
        "balanced": (quality, memory, speed),
        "quality": (quality._replace(tie=0.25), memory, speed),
        "memory": (near, memory._replace(tie=0.01), quality, speed),
        "latency": (near, speed._replace(tie=0.02), quality, memory),
        "storage": (near, disk, quality, memory, speed),
        "time": (near, hurry, quality, memory, speed),
        "simplicity": (near,),
    }
    return (*first[priority], simple)


class Round(NamedTuple):
    """One criterion applied: who was left before and after, and the best score."""

    criterion: Criterion
    before: tuple[Evaluated, ...]
    after: tuple[Evaluated, ...]
    best: float

    @property
    def limit(self) -> float:
        return self.best + self.criterion.tie


def choose(scenario: Scenario, feasible: Sequence[Evaluated]) -> tuple[Evaluated, list[Round]]:
    """The candidate that survives every criterion, and how; the first of equals."""
    rounds: list[Round] = []
    left = tuple(feasible)
    for criterion in criteria(scenario.spec.priority):
        scores = [criterion.score(scenario, found) for found in left]
        best = min(scores)
        limit = best + criterion.tie
        kept = tuple(f for f, score in zip(left, scores, strict=True) if score <= limit)
        rounds.append(Round(criterion, left, kept, best))
        left = kept
    return left[0], rounds
