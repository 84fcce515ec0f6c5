"""One explicit candidate and where it runs: what is asked of an estimate."""

from typing import Annotated, Literal

from planner import catalog
from planner.architecture import Architecture
from planner.errors import UsageError
from planner.method import Method
from planner.resolve import task_of
from planner.section import Section
from planner.section_schema import Limits
from planner.spec import (
    Attention,
    Checkpointing,
    Compute,
    Count,
    Data,
    Format,
    HardwareChoice,
    Loss,
    ModelChoice,
    Optimizer,
    Pinned,
    Rank,
    Runtime,
    Serving,
    Spec,
    TrainingSpec,
)

Program = Literal[
    "paretune", "peft", "trainer", "trainer-2024", "trl-2024", "litgpt-2023", "litgpt-2024"
]
"""Those of planner.cost.framework."""

DEFAULT_RANK = 16
DEFAULT_LENGTH = 1024
EVERY_FORMAT = 3
UNLIMITED_GIB = 1e6


class Case(Section):
    """One candidate and where it runs; None is the method's default, or no limit.

    The defaults are what the compiler does: fp32 adapters, attention that keeps no scores where the
    family has such a kernel, a loss in chunks; arithmetic in fp32 on an fp32 base and else in bf16;
    1024 tokens or what the model has. The format "nf4_single" is NF4 without double quantisation
    while training; served, it is NF4. `framework` says which program's way of keeping tensors is
    meant; by default a full loss means transformers with PEFT. All targets named must be ones that
    the method adapts, and no option may be one that the method has no use for.
    """

    schema_version: Literal[1] = 1
    model: ModelChoice
    method: str = "lora"
    rank: Rank | None = None
    targets: Annotated[tuple[str, ...], Limits(min_length=1)] | None = None
    format: Format | Literal["nf4_single"] = "bf16"
    compute: Compute | None = None
    adapter_dtype: Compute | None = None
    batch_size: Count = 1
    gradient_accumulation: Count = 1
    sequence_length: Count | None = None
    checkpointing: Checkpointing = "none"
    attention: Attention | None = None
    optimizer: Optimizer = "adamw"
    loss: Loss = "chunked"
    framework: Program | None = None
    dropout: Annotated[float, Limits(ge=0, lt=1)] = 0.0
    labels: Annotated[int, Limits(ge=2)] | None = None
    hardware: HardwareChoice | None = None
    runtime: Runtime = "paretune"
    export: Literal["unmerged", "merged"] | None = None
    precision: Literal["exact", "fast"] = "exact"
    tenants: Count = 1
    active_tenants: Count | None = None
    slots: Count | None = None
    concurrency: Count | None = None
    context_length: Count | None = None
    prompt_tokens: Count | None = None


def stated(case: Case, chosen: Method) -> Case:
    """The case with its defaults filled in; raises UsageError for what cannot be."""
    formats = chosen.formats
    # Int8 is a base that any adapter leaves frozen; the compiler does not build it yet.
    frozen = case.format == "int8" and len(formats) == EVERY_FORMAT
    if served_format(case.format) not in formats and not frozen:
        raise UsageError(
            f"{chosen.name} trains on {' or '.join(formats)}, not on {case.format}",
            hint=f"take --format {' or '.join(formats)}",
        )
    shape = catalog.model(case.model).architecture
    _check_options(case, chosen, shape)
    positions = shape.positions
    length = case.sequence_length or min(DEFAULT_LENGTH, positions or DEFAULT_LENGTH)
    if positions and length > positions:
        raise UsageError(f"sequence {length} is more than the model's {positions}")
    return case.model_copy(
        update={
            "rank": _rank(case, chosen),
            "targets": None if chosen.trains_base else case.targets,
            "compute": case.compute or ("fp32" if case.format == "fp32" else "bf16"),
            "sequence_length": length,
            "adapter_dtype": case.adapter_dtype or (None if chosen.trains_base else "fp32"),
            "attention": case.attention or ("full" if shape.writes_scores else "flash"),
            "framework": case.framework or ("peft" if case.loss == "full" else "paretune"),
            "export": case.export or chosen.serves[0],
        }
    )


def _rank(case: Case, chosen: Method) -> int | None:
    if case.rank is not None or not chosen.ranks:
        return case.rank
    return min(chosen.ranks, key=lambda rank: abs(rank - DEFAULT_RANK))


def _check_options(case: Case, chosen: Method, shape: Architecture) -> None:
    """Raises UsageError for an option that the method or the model has no use for."""
    name = chosen.name
    whole = chosen.trains_base and case.targets == ("all-linear",)
    if case.targets is not None and not whole and (chosen.trains_base or not chosen.targets):
        raise UsageError(
            f"{name} adapts no linears, so it has no targets: {', '.join(case.targets)}",
            hint="leave --targets out",
        )
    if case.adapter_dtype is not None and chosen.trains_base:
        raise UsageError(
            f"{name} trains the model itself, so it has no adapters in {case.adapter_dtype}",
            hint="leave --adapter-dtype out; --format and --framework say how its weights are held",
        )
    if case.optimizer == "galore" and not chosen.trains_base:
        raise UsageError(
            f"galore projects gradients of whole matrices, which {name} does not train",
            hint="take --optimizer adamw, adamw8bit or paged_adamw8bit, or --method full",
        )
    if case.dropout and not chosen.drops_input:
        raise UsageError(
            f"{name} has no dropout of its inputs, so not {case.dropout}",
            hint="leave --dropout out",
        )
    if case.attention == "flash" and shape.writes_scores:
        raise UsageError(
            f"{shape.model_type} has no attention that keeps its scores out of memory, as "
            f"'{case.attention}' does",
            hint="take --attention full",
        )


def served_format(format_: str) -> str:
    """The base that a runtime loads; each packs NF4 in its own way."""
    return "nf4" if format_ == "nf4_single" else format_


def case_spec(case: Case, chosen: Method) -> Spec:
    """The case as a spec in which everything is pinned and nothing is limited."""
    shape = catalog.model(case.model).architecture
    images = task_of(shape) == "image_classification"
    memory = UNLIMITED_GIB if case.hardware is None else catalog.hardware(case.hardware).memory_gib
    return Spec(
        model=case.model,
        task=task_of(shape),
        vram_gib=memory,
        training=TrainingSpec(hardware=case.hardware),
        serving=Serving(
            hardware=case.hardware,
            tenants=case.tenants,
            active_tenants=case.active_tenants,
            slots=case.slots,
            concurrency=case.concurrency,
            runtime=case.runtime,
            context_length=case.context_length,
            prompt_tokens=case.prompt_tokens,
        ),
        data=Data(mean_tokens=None if images else case.sequence_length, labels=case.labels),
        pinned=Pinned(
            method=case.method,
            rank=case.rank,
            targets=case.targets,
            compute=case.compute,
            batch_size=case.batch_size,
            gradient_accumulation=case.gradient_accumulation,
            sequence_length=case.sequence_length,
        ),
    )
