"""Expected quality against the reference: LoRA of a rank that suffices, all linears, 16-bit base.

    points = method + capacity + targets + format + precision + merge

Each term is an estimate from published differences (planner.quality.posterior) or a declared cause,
with a half-width of one standard deviation; half-widths add in squares to the noise floor. Points
are those of a family's typical benchmark. Differences under TIE_POINTS are ties.
"""

import json
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

from planner.quality.causes import (
    few,
    scale,
    sensitivity,
    shortage,
    smallness,
)

EVIDENCE = Path(__file__).parents[1] / "evidence"
REFERENCES = ("lora", "qlora")
"""The same update at the same scale: QLoRA is LoRA on an NF4 base."""
TIE_POINTS = 2.0
"""A gap below this is noise (claim-noise). Ties by half or one standard error of the difference
lower the held-out regret on independent rows by 0.1 points, which is noise too, and give up LoRA
for gains that only authors report."""
NOISE_POINTS = 1.6
"""Repeat SD 0.8 and binomial SE 1.4, in squares (claim-noise)."""
FAST_POINTS = 0.3
REQUANTISED_POINTS = 0.5
TARGET_POINTS = {"attention": -1.5, "mlp": -0.3}
"""Adapters on these alone against all linears at equal parameters (claim-targets)."""

PUBLISHED_STEPS = {"lora_plus": 0.5}
"""To LoRA's loss, as a share of LoRA's, at best and by the method's authors (claim-convergence)."""
BELIEVED_SHARE = 0.5
"""Of a gain that only its authors report; others' tables leave 0.15 of DoRA's, 0.5 of PiSSA's, 0.8
of C3A's and none of RandLoRA's."""

Estimate = tuple[float, float]
"""Points and their standard deviation."""


class Study(TypedDict):
    """A method in a source: the mean of its published differences to the reference."""

    id: str
    method: str
    reference: str
    points: float
    results: int
    families: list[str]
    self_reported: bool
    rate: str
    source: str


class MethodEffects(TypedDict):
    """Points at a score of 50: by family, per tenfold fewer examples, and per tenfold of size.

    `rate` is what the default learning rate may cost; only prompts have a `scale`.
    """

    rate: float
    effects: dict[str, Estimate]
    few: Estimate
    scale: NotRequired[Estimate]


class Summary(TypedDict):
    """planner/evidence/posterior.json; effects are points at a score of 50."""

    scores: dict[str, float]
    methods: dict[str, MethodEffects]
    capacity: dict[str, Estimate]
    formats: dict[str, dict[str, Estimate]]
    inflation: Estimate
    studies: list[Study]


class Quality(NamedTuple):
    """Points against the reference and their half-width; `evidence_ids` name what they rest on."""

    points: float
    half_width: float
    evidence_ids: tuple[str, ...] = ()

    def __add__(self, other: "Quality") -> "Quality":  # type: ignore[override]
        if other is NOTHING:
            return self
        return Quality(
            self.points + other.points,
            math.hypot(self.half_width, other.half_width),
            tuple(dict.fromkeys(self.evidence_ids + other.evidence_ids)),
        )


NOTHING = Quality(0.0, 0.0)
UNKNOWN = Quality(0.0, 4.0)
"""A pinned method that nothing published compares with LoRA: the spread of methods, assumed."""


@cache
def summary() -> Summary:
    found: Summary = json.loads((EVIDENCE / "posterior.json").read_text(encoding="utf-8"))
    return found


def evidence() -> tuple[Study, ...]:
    return tuple(summary()["studies"])


@cache
def claims() -> dict[str, str]:
    """What each cited claim states and where."""
    text = json.loads((EVIDENCE / "claims.json").read_text(encoding="utf-8"))
    return {row["id"]: f"{row['states']} ({row['source']})" for row in text["rows"]}


def fade(family: str) -> float:
    """Points on the family's typical benchmark per point at a score of 50."""
    return sensitivity(summary()["scores"][family])


@cache
def method_quality(
    name: str,
    family: str = "instruction",
    parameters: float = 7e9,
    examples: int | None = None,
) -> Quality | None:
    """The method at capacity that suffices against LoRA's; None where nothing was published."""
    if name in REFERENCES:
        return Quality(0.0, 0.0, ("claim-tuned",))
    found = summary()["methods"].get(name)
    if found is None:
        return None
    terms: list[tuple[float, Estimate]] = [(1.0, found["effects"][family])]
    terms.append((1.0, (0.0, found["rate"])))
    cited = [*cited_studies(name, family), "claim-rates"]
    if scarcity := few(examples):
        terms.append((scarcity, found["few"]))
        cited.append("claim-few")
    if "scale" in found:
        terms.append((scale(parameters / 1e9), found["scale"]))
        cited.append("claim-prompt-scale")
    points = sum(weight * mean for weight, (mean, _) in terms)
    half_width = math.hypot(*(weight * width for weight, (_, width) in terms))
    return Quality(fade(family) * points, fade(family) * half_width, tuple(cited))


def cited_studies(name: str, family: str) -> tuple[str, ...]:
    """The method's studies in that family, or all where there is none."""
    own = [study for study in evidence() if study["method"] == name]
    near = [study for study in own if family in study["families"]]
    return tuple(study["id"] for study in near or own)


def unranked(name: str) -> str:
    """Why a method has no expected quality."""
    return f"nothing published compares {name} with LoRA in numbers"


def rank_quality(family: str, trainable: float, bits: float, *, trains_base: bool) -> Quality:
    """What is lost to fewer trained parameters than the data fill (claim-rank, -capacity).

    `bits` are what the data bring (planner.quality.data_bits). More parameters never
    lose more; full fine-tuning lacks none.
    """
    if trains_base:
        return NOTHING
    slope, width = summary()["capacity"][family]
    doublings = fade(family) * shortage(trainable, bits)
    return Quality(-slope * doublings, width * doublings, ("claim-rank", "claim-capacity"))


def target_quality(roles: frozenset[str], *, adapts_all: bool) -> Quality:
    """Attention-only or MLP-only against all linears (claim-targets)."""
    if adapts_all:
        return NOTHING
    part = "mlp" if all(role.startswith("mlp.") for role in roles) else "attention"
    lost = TARGET_POINTS[part]
    return Quality(lost, 0.5 * abs(lost), ("claim-targets",))


def format_quality(
    family: str, format_: str, parameters: float, *, decoder: bool = True
) -> Quality:
    """What a quantised base costs: the family's loss at 7e9, growing towards 135e6 parameters.

    Encoders and encoder-decoders lose as little at any size (claim-nf4-encoder).
    """
    formats = summary()["formats"]
    if format_ not in formats:
        return NOTHING
    large, small = formats[format_][family], formats[f"{format_} small"][family]
    share = smallness(parameters / 1e9) if decoder else 0.0
    points = large[0] + share * (small[0] - large[0])
    half_width = math.hypot((1.0 - share) * large[1], share * small[1])
    ids = ("claim-nf4-large", "claim-nf4-small") if share else ("claim-nf4-large",)
    if not decoder:
        ids = ("claim-nf4-encoder",)
    return Quality(fade(family) * points, fade(family) * half_width, ids)


def serving_quality(format_: str, export: str, precision: str) -> Quality:
    """What int8 activations and re-quantising a merged weight cost."""
    found = NOTHING
    if precision == "fast":
        found = found + Quality(-FAST_POINTS, FAST_POINTS, ("claim-fast",))
    if export == "merged" and format_ == "nf4":
        found = found + Quality(-REQUANTISED_POINTS, REQUANTISED_POINTS)
    return found


def steps_share(name: str) -> float:
    """Expected steps to LoRA's quality as a share of LoRA's; 1 where nothing was published."""
    return 1.0 - BELIEVED_SHARE * (1.0 - PUBLISHED_STEPS.get(name, 1.0))


def noise() -> Quality:
    return Quality(0.0, NOISE_POINTS, ("claim-noise",))
