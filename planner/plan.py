"""The plan: one chosen candidate with its training settings, figures, reasons and rejections."""

import hashlib
import json
from dataclasses import field
from typing import Annotated, Literal

from planner.section import Section
from planner.section_schema import Limits
from planner.spec import Rank, Seed, Spec, Task

SCHEMA_VERSION: Literal[1] = 1

BUILT_TASKS = ("causal_lm", "sequence_classification")
"""Those that the compiler builds."""

Size = Annotated[float, Limits(gt=0, le=1e12)]
Evidence = Literal["measured", "published", "derived", "assumed"]


class Figure(Section):
    """A number with its unit in the key that holds it; None is unknown."""

    value: int | float | None
    evidence: Evidence
    source: str
    low: float | None = None
    high: float | None = None


def figure(
    value: float | None,
    evidence: Evidence,
    source: str,
    low: float | None = None,
    high: float | None = None,
) -> Figure:
    """A figure of our own making, for which no validator is built: start-up time."""
    return Figure.model_construct(value=value, evidence=evidence, source=source, low=low, high=high)


class Candidate(Section):
    """One full choice; `targets` are roles, "all-linear" or module-name patterns."""

    method: str
    rank: Rank | None
    alpha: Size | None
    targets: tuple[str, ...]
    format: Literal["fp32", "bf16", "nf4"]
    compute: Literal["fp32", "bf16"]
    batch_size: Annotated[int, Limits(ge=1)]
    gradient_accumulation: Annotated[int, Limits(ge=1)] = 1
    sequence_length: Annotated[int, Limits(ge=1)]
    checkpointing: Literal["none", "block"] = "none"
    optimizer: Literal["adamw", "paged_adamw8bit"] = "adamw"
    learning_rate: Size
    export: Literal["unmerged", "merged"] = "unmerged"
    precision: Literal["exact", "fast"] = "exact"


class Training(Section):
    """How long and how to train each tenant; `max_steps` None means `epochs` decide."""

    epochs: Size = 3.0
    max_steps: Annotated[int, Limits(ge=1)] | None = None
    warmup_fraction: Annotated[float, Limits(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Limits(ge=0, le=1e12)] = 0.0
    max_gradient_norm: Size = 1.0
    validation_fraction: Annotated[float, Limits(gt=0, lt=1)] = 0.05
    evaluate_every: Annotated[int, Limits(ge=1)] = 50
    patience: Annotated[int, Limits(ge=1)] = 3
    checkpoint_every: Annotated[int, Limits(ge=1)] = 25
    packing: bool = False
    seed: Seed = 0


class ModelFacts(Section):
    """What ties a plan to its model: the family, the config's shape fields and their digest."""

    name: str
    family: str
    config_digest: str
    parameters: int
    shape: dict[str, bool | int | str] = field(default_factory=dict)


class Rejection(Section):
    """A candidate that was not chosen: the constraint, the number and the limit."""

    candidate: str
    constraint: str
    number: float | None
    limit: float | None
    unit: str
    reason: str


class Plan(Section):
    """What is recommended for `spec`, with its figures, why, and what it was preferred to."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: Task
    model: ModelFacts
    candidate: Candidate
    training: Training
    figures: dict[str, Figure]
    reasons: tuple[str, ...]
    rejections: tuple[Rejection, ...]
    evidence_ids: tuple[str, ...] = ()
    spec: Spec


def digest(plan: Plan) -> str:
    """sha256 of the canonical JSON of the plan."""
    text = json.dumps(plan.model_dump(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
