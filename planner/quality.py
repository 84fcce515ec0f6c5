"""Expected quality against the reference: LoRA, rank that suffices, all linears, 16-bit base.

    points = method + rank or capacity + targets + format + precision + merge

Each term is a published difference or a declared cause, with a half-width; half-widths add in
squares to the noise floor. Differences under TIE_POINTS are ties.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict, cast

from planner.method import Method, method
from planner.spec import Family

REFERENCE = "lora"
TIE_POINTS = 2.0
NOISE_POINTS = 1.6
"""Repeat SD 0.8 and binomial SE 1.4, in squares (claim-noise)."""
PRIOR_WEIGHT = 1.0
"""Of the belief that a tuned variant equals LoRA (claim-tuned), in independent sources."""
DOUBTED_WEIGHT = 0.25
"""Of a source that reports on its own method, or that tuned no learning rate per method."""

POINTS_PER_DOUBLING: dict[Family, float] = {
    "code": 3.5,
    "math": 1.35,
    "domain": 1.0,
    "instruction": 0.1,
    "classification": 0.1,
    "style": 0.0,
}
SATURATING_RANK = 256
FULL_EFFECT_TOKENS = 3e7
NO_EFFECT_TOKENS = 1e5
BITS_PER_PARAMETER = 2.0
BITS_PER_TOKEN = 1.0
POINTS_PER_OVERLOAD = 1.0

NF4_POINTS_AT_7B: dict[Family, float] = {
    "code": 1.5,
    "math": 2.5,
    "domain": 1.0,
    "instruction": 0.9,
    "classification": 0.03,
    "style": 0.9,
}
FAST_POINTS = 0.3
REQUANTISED_POINTS = 0.5
TARGET_POINTS = {"attention": -1.5, "mlp": -0.3}


class Row(TypedDict):
    """A published difference to LoRA."""

    id: str
    method: str
    points: float
    results: int
    self_reported: bool
    tuned: bool
    source: str


@dataclass(frozen=True)
class Quality:
    """Points against the reference and their half-width; `evidence_ids` name the rows used."""

    points: float
    half_width: float
    evidence_ids: tuple[str, ...] = ()

    def __add__(self, other: "Quality") -> "Quality":
        if other is NOTHING:
            return self
        return Quality(
            self.points + other.points,
            math.hypot(self.half_width, other.half_width),
            self.evidence_ids + other.evidence_ids,
        )


NOTHING = Quality(0.0, 0.0)
UNKNOWN = Quality(0.0, 4.0)
"""A pinned method that nothing published compares with LoRA; the width is assumed."""


@cache
def evidence() -> tuple[Row, ...]:
    return tuple(cast(list[Row], _read("methods.json")))


@cache
def claims() -> dict[str, str]:
    """What each cited claim states and where."""
    return {row["id"]: f"{row['states']} ({row['source']})" for row in _read("claims.json")}


def _read(name: str) -> list[dict[str, str]]:
    text = (Path(__file__).parent / "evidence" / name).read_text(encoding="utf-8")
    return cast(list[dict[str, str]], json.loads(text)["rows"])


def is_reference(candidate: Method) -> bool:
    """A method that trains the same tensors by the same update at the same scale as LoRA."""
    lora = method(REFERENCE)
    return (candidate.update, candidate.tensors, candidate.scaling) == (
        lora.update,
        lora.tensors,
        lora.scaling,
    )


@cache
def method_quality(name: str) -> Quality | None:
    """The method at its best setting against LoRA's; None where nothing was published."""
    if is_reference(method(name)):
        return Quality(0.0, 0.0, ("claim-tuned",))
    rows = [row for row in evidence() if row["method"] == name]
    if not rows:
        return None
    weights = [1.0 if r["tuned"] and not r["self_reported"] else DOUBTED_WEIGHT for r in rows]
    total = sum(weights) + PRIOR_WEIGHT
    mean = sum(w * r["points"] for w, r in zip(weights, rows, strict=True)) / total
    spread = sum(w * (r["points"] - mean) ** 2 for w, r in zip(weights, rows, strict=True))
    spread += PRIOR_WEIGHT * mean**2
    return Quality(mean, math.sqrt(spread / total), tuple(r["id"] for r in rows))


def rank_quality(
    family: Family, rank: int | None, trainable: int, data_tokens: int, *, trains_base: bool
) -> Quality:
    """What is lost to a rank or a parameter count too small for the data (claim-rank, -capacity).

    A method without a rank is held against capacity alone; full fine-tuning lacks neither.
    """
    if trains_base:
        return NOTHING
    effect = math.log(data_tokens / NO_EFFECT_TOKENS, FULL_EFFECT_TOKENS / NO_EFFECT_TOKENS)
    doublings = math.log2(SATURATING_RANK / rank) if rank else 0.0
    by_rank = POINTS_PER_DOUBLING[family] * min(max(effect, 0.0), 1.0) * max(doublings, 0.0)
    overload = BITS_PER_TOKEN * data_tokens / (BITS_PER_PARAMETER * max(trainable, 1))
    slope = max(POINTS_PER_DOUBLING[family], 0.1 * POINTS_PER_OVERLOAD)
    by_capacity = slope * max(math.log2(overload), 0.0)
    lost = max(by_rank, by_capacity)
    if lost == 0.0:
        return Quality(0.0, 0.0, ("claim-capacity",))
    return Quality(-lost, 0.5 * lost, ("claim-rank", "claim-capacity"))


def target_quality(roles: frozenset[str], *, adapts_all: bool) -> Quality:
    """Attention-only or MLP-only against all linears (claim-targets)."""
    if adapts_all:
        return NOTHING
    part = "mlp" if all(role.startswith("mlp.") for role in roles) else "attention"
    lost = TARGET_POINTS[part]
    return Quality(lost, 0.5 * abs(lost), ("claim-targets",))


def format_quality(family: Family, format_: str, parameters: int) -> Quality:
    """What a 4-bit base costs; it grows as the square root of 7e9 / parameters.

    At 135M a generative family loses about 6 points, where perplexity rises by 30 %.
    """
    if format_ != "nf4":
        return NOTHING
    lost = NF4_POINTS_AT_7B[family] * math.sqrt(7e9 / parameters)
    cited = "claim-nf4-encoder" if family == "classification" else "claim-nf4-large"
    return Quality(-lost, 0.6 * lost, (cited, "claim-nf4-small"))


def serving_quality(format_: str, export: str, precision: str) -> Quality:
    """What int8 activations and re-quantising a merged weight cost."""
    found = NOTHING
    if precision == "fast":
        found = found + Quality(-FAST_POINTS, FAST_POINTS, ("claim-fast",))
    if export == "merged" and format_ == "nf4":
        found = found + Quality(-REQUANTISED_POINTS, REQUANTISED_POINTS)
    return found


def noise() -> Quality:
    return Quality(0.0, NOISE_POINTS, ("claim-noise",))
