"""What one explicit candidate costs, part by part, whether or not anyone would recommend it."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from planner import catalog
from planner.candidates import (
    Adapter,
    Form,
    Refusal,
    adapted,
    adapters,
    form_refusal,
    select,
)
from planner.cost.adapter import target_set
from planner.cost.framework import FRAMEWORKS
from planner.cut import cost_of, step_of
from planner.errors import UsageError
from planner.evaluate import evaluated
from planner.figures import figures
from planner.method import Method, method
from planner.plan import SCHEMA_VERSION, Figure, Frozen
from planner.resolve import Scenario, resolve, task_of
from planner.schedule import training
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
    Runtime,
    Section,
    Serving,
    Spec,
    TrainingSpec,
)

DEFAULT_RANK = 16
DEFAULT_LENGTH = 1024
EVERY_FORMAT = 3
UNLIMITED_GIB = 1e6


class Case(Section):
    """One candidate and where it runs; None is the method's default, or no limit.

    The defaults are what the compiler does: fp32 adapters, attention that keeps no scores, a loss
    in chunks; arithmetic in fp32 on an fp32 base and else in bf16; 1024 tokens or what the model
    has. `framework` says which program's way of keeping tensors is meant; by default a full loss
    means transformers with PEFT. All targets named must be ones that the method adapts.
    """

    schema_version: Literal[1] = 1
    model: ModelChoice
    method: str = "lora"
    rank: Annotated[int, Field(ge=1, le=4096)] | None = None
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    format: Format = "bf16"
    compute: Compute | None = None
    adapter_dtype: Compute = "fp32"
    batch_size: Count = 1
    gradient_accumulation: Count = 1
    sequence_length: Count | None = None
    checkpointing: Checkpointing = "none"
    attention: Attention = "flash"
    optimizer: Optimizer = "adamw"
    loss: Loss = "chunked"
    framework: Literal["paretune", "peft", "litgpt-2023", "litgpt-2024"] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    labels: Annotated[int, Field(ge=2)] | None = None
    hardware: HardwareChoice | None = None
    runtime: Runtime = "paretune"
    export: Literal["unmerged", "merged"] | None = None
    precision: Literal["exact", "fast"] = "exact"
    tenants: Count = 1
    active_tenants: Count | None = None
    slots: Count | None = None
    context_length: Count | None = None
    prompt_tokens: Count | None = None


class Estimate(Frozen):
    """`case` with every default filled in; `values` nests every figure's value by the parts of its
    key; `figures` says how known. Parts are each at their own largest, the peak is at one moment.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    case: Case
    values: dict[str, JsonValue]
    figures: dict[str, Figure]


def estimate(case: Case) -> Estimate:
    """Every figure of the case; raises UsageError for what cannot be."""
    chosen = method(case.method)
    case = _stated(case, chosen)
    scenario = resolve(_spec(case, chosen))
    adapter = _adapter(scenario, case)
    form = Form(case.format, case.export or chosen.serves[0], case.precision)
    refused = form_refusal(scenario, chosen, adapter.rank, form)
    if refused is not None:
        raise UsageError(f"{refused.subject}: {refused.reason}")
    step = step_of(scenario, adapter, case.format, case.checkpointing, case.batch_size)._replace(
        adapter_dtype=case.adapter_dtype,
        attention=case.attention,
        optimizer=case.optimizer,
        loss=case.loss,
        dropout=case.dropout,
        framework=FRAMEWORKS[case.framework] if case.framework else None,
    )
    micro = cost_of(scenario, adapter.cost, step)
    found = evaluated(scenario, adapter, form, micro.required_bytes)
    schedule = training(scenario, -(-scenario.examples // micro.examples))
    named = figures(scenario, found, micro, schedule)
    return Estimate(case=case, values=nested(named), figures=named)


def _stated(case: Case, chosen: Method) -> Case:
    """The case with its defaults filled in; raises UsageError for a format that cannot be."""
    formats = chosen.formats
    # Int8 is a base that any adapter leaves frozen; the compiler does not build it yet.
    if case.format not in formats and not (case.format == "int8" and len(formats) == EVERY_FORMAT):
        raise UsageError(f"{chosen.name} trains on {' or '.join(formats)}, not on {case.format}")
    positions = catalog.model(case.model).architecture.positions
    length = case.sequence_length or min(DEFAULT_LENGTH, positions or DEFAULT_LENGTH)
    if positions and length > positions:
        raise UsageError(f"sequence {length} is more than the model's {positions}")
    return case.model_copy(
        update={
            "rank": _rank(case, chosen),
            "compute": case.compute or ("fp32" if case.format == "fp32" else "bf16"),
            "sequence_length": length,
            "framework": case.framework or ("peft" if case.loss == "full" else "paretune"),
            "export": case.export or chosen.serves[0],
        }
    )


def _adapter(scenario: Scenario, case: Case) -> Adapter:
    """The first that the pins leave: the method's own targets where none are named."""
    first = next(iter(adapters(scenario, unbuildable=True)))
    if isinstance(first, Refusal):
        raise UsageError(f"{first.subject}: {first.reason}")
    if case.targets is not None and first.method.targets:
        _check_all_adapted(scenario, first, case.targets)
    return first


def _check_all_adapted(scenario: Scenario, found: Adapter, targets: tuple[str, ...]) -> None:
    """A linear that is named and that the method leaves alone is an error, not a smaller count."""
    for pattern in targets:
        linears = target_set(select((pattern,), scenario.architecture))
        if not adapted(found.method, linears).kinds:
            raise UsageError(
                f"{found.method.name} adapts nothing of the target '{pattern}'",
                hint=f"its own targets are {', '.join(found.method.targets)}",
            )


def _rank(case: Case, chosen: Method) -> int | None:
    if case.rank is not None or not chosen.ranks:
        return case.rank
    return min(chosen.ranks, key=lambda rank: abs(rank - DEFAULT_RANK))


def _spec(case: Case, chosen: Method) -> Spec:
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
            runtime=case.runtime,
            context_length=case.context_length,
            prompt_tokens=case.prompt_tokens,
        ),
        data=Data(mean_tokens=None if images else case.sequence_length, labels=case.labels),
        pinned=Pinned(
            method=case.method,
            rank=case.rank,
            targets=None if chosen.trains_base else case.targets,
            compute=case.compute,
            batch_size=case.batch_size,
            gradient_accumulation=case.gradient_accumulation,
            sequence_length=case.sequence_length,
        ),
    )


def nested(found: dict[str, Figure]) -> dict[str, JsonValue]:
    """{"training.parts.weights_bytes": f} -> {"training": {"parts": {"weights_bytes": value}}}."""
    tree: dict[str, JsonValue] = {}
    for key, figure in found.items():
        *parents, last = key.split(".")
        section = tree
        for parent in parents:
            inner = section.setdefault(parent, {})
            assert isinstance(inner, dict), f"{key} is both a figure and a section"
            section = inner
        section[last] = figure.value
    return tree
