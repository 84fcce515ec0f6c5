"""The spec: what a user declares. Everything but `model`, `task` and `vram_gib` has a default."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag

Positive = Annotated[float, Field(ge=1e-6, le=1e12)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rank = Annotated[int, Field(ge=1, le=2**20)]
"""Or the size that a method has in place of one, such as FourierFT's 5000 frequencies."""

Task = Literal["causal_lm", "seq2seq_lm", "sequence_classification", "image_classification"]
Family = Literal["instruction", "code", "math", "domain", "style", "classification", "image"]
Format = Literal["fp32", "bf16", "int8", "nf4"]
Compute = Literal["fp32", "bf16"]
Checkpointing = Literal["none", "block"]
Attention = Literal["flash", "full"]
Optimizer = Literal["adamw", "adamw8bit", "paged_adamw8bit", "galore", "sgd"]
Loss = Literal["chunked", "full"]
Priority = Literal["balanced", "quality", "memory", "latency", "storage", "time", "simplicity"]
Runtime = Literal["paretune", "onnxruntime", "onnxruntime-genai", "vllm", "lorax", "llama.cpp"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Hardware(Section):
    """One device; memory in GiB, bandwidth in 1e9 bytes/s, peaks in 1e12 operations/s, dense.

    None is unknown: figures that need it are None, and a budget that needs it is refused. No
    `bf16_tflops` means no bf16 arithmetic: a runtime of half precision then serves in fp16, if that
    is known. `measured` rates are what products and streams reach on the device itself, so no share
    of a peak is taken of them.
    """

    kind: Literal["cpu", "gpu"]
    memory_gib: Positive
    bandwidth_gb_per_second: Positive | None = None
    fp32_tflops: Positive | None = None
    bf16_tflops: Positive | None = None
    fp16_tflops: Positive | None = None
    int8_tops: Positive | None = None
    price_per_hour_usd: Positive | None = None
    measured: bool = False


def _hardware_tag(value: object) -> str:
    return "name" if isinstance(value, str) else "explicit"


def _model_tag(value: object) -> str:
    return "name" if isinstance(value, str) else "config"


HardwareChoice = Annotated[
    Annotated[str, Tag("name")] | Annotated[Hardware, Tag("explicit")],
    Discriminator(_hardware_tag),
]
ModelChoice = Annotated[
    Annotated[str, Tag("name")] | Annotated[dict[str, JsonValue], Tag("config")],
    Discriminator(_model_tag),
]


class TrainingSpec(Section):
    """Where and for how long a tenant is trained; None is decided by the planner.

    `packing` lays several texts end to end in one row.
    """

    hardware: HardwareChoice | None = None
    epochs: Positive | None = None
    max_steps: Count | None = None
    learning_rate: Positive | None = None
    packing: bool = False
    evaluate_every: Count | None = None
    checkpoint_every: Count | None = None
    patience: Count | None = None
    seed: Seed = 0


class Serving(Section):
    """Where tenants are served; `active_tenants` (default: all) ask for something at a time.

    `slots` (default: one for each of them) are the bank's rows; a tenant without one waits until
    its row is read. `concurrency` sequences decode together (default: one for each slot).
    `prompt_tokens` defaults to half the context. The two budgets are milliseconds.
    """

    hardware: HardwareChoice | None = None
    memory_gib: Positive | None = None
    tenants: Count = 1
    active_tenants: Count | None = None
    slots: Count | None = None
    concurrency: Count | None = None
    context_length: Count | None = None
    prompt_tokens: Count | None = None
    first_token_ms: Positive | None = None
    per_token_ms: Positive | None = None
    runtime: Runtime = "paretune"


class Data(Section):
    """Examples per tenant, their mean length in tokens, and the labels of a classifier."""

    examples: Count | None = None
    mean_tokens: Count | None = None
    labels: Annotated[int, Field(ge=2)] | None = None


class Pinned(Section):
    """Choices that the planner must keep; every other choice stays open."""

    method: str | None = None
    rank: Rank | None = None
    alpha: Positive | None = None
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    format: Format | None = None
    compute: Compute | None = None
    batch_size: Count | None = None
    gradient_accumulation: Count | None = None
    sequence_length: Count | None = None
    checkpointing: Checkpointing | None = None
    export: Literal["unmerged", "merged"] | None = None
    precision: Literal["exact", "fast"] | None = None


def _empty() -> Any:  # noqa: ANN401, a default of whatever section
    """A section left out is one with every default.

    Validated inside the spec, so that a section's own validator is never built: start-up time.
    """
    return Field(default_factory=dict, validate_default=True)


class Spec(Section):
    """Model, task and training memory, and whatever else the user knows.

    `model` is a catalogue name, a path to a config.json or its folder, or the config itself.
    """

    schema_version: Literal[1] = 1
    model: ModelChoice
    task: Task
    vram_gib: Positive
    family: Family | None = None
    priority: Priority = "balanced"
    training: TrainingSpec = _empty()
    serving: Serving = _empty()
    data: Data = _empty()
    pinned: Pinned = _empty()
