"""The spec: what a user declares. Everything but `model`, `task` and `vram_gib` has a default."""

from dataclasses import field
from typing import Annotated, Literal

from planner.section import Section
from planner.section_schema import JsonValue, Limits

Positive = Annotated[float, Limits(ge=1e-6, le=1e12)]
Count = Annotated[int, Limits(ge=1, le=10**12)]
Seed = Annotated[int, Limits(ge=0, lt=2**63)]
Rank = Annotated[int, Limits(ge=1, le=2**20)]
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


HardwareChoice = str | Hardware
ModelChoice = str | dict[str, JsonValue]


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
    labels: Annotated[int, Limits(ge=2)] | None = None


class Pinned(Section):
    """Choices that the planner must keep; every other choice stays open."""

    method: str | None = None
    rank: Rank | None = None
    alpha: Positive | None = None
    targets: Annotated[tuple[str, ...], Limits(min_length=1)] | None = None
    format: Format | None = None
    compute: Compute | None = None
    batch_size: Count | None = None
    gradient_accumulation: Count | None = None
    sequence_length: Count | None = None
    checkpointing: Checkpointing | None = None
    export: Literal["unmerged", "merged"] | None = None
    precision: Literal["exact", "fast"] | None = None


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
    training: TrainingSpec = field(default_factory=TrainingSpec)
    serving: Serving = field(default_factory=Serving)
    data: Data = field(default_factory=Data)
    pinned: Pinned = field(default_factory=Pinned)
