"""What one explicit candidate costs, part by part, whether or not anyone would recommend it."""

from typing import Literal

from planner.adapters import Adapter, adapted, adapters, select
from planner.architecture import Architecture
from planner.case import Case, case_spec, served_format, stated
from planner.cost.adapter import target_set
from planner.cost.framework import FRAMEWORKS
from planner.cost.trace import FLOAT_BYTES
from planner.cost.weights import COMPUTE_BYTES
from planner.cut import cost_of, step_of
from planner.errors import UsageError
from planner.evaluate import evaluated
from planner.figures import COUNT_SOURCE, assumed, figures
from planner.forms import Form, Refusal, form_refusal
from planner.method import method
from planner.plan import SCHEMA_VERSION, Figure
from planner.resolve import resolve
from planner.scenario import Scenario
from planner.schedule import training
from planner.section import Section
from planner.section_schema import JsonValue


class Estimate(Section):
    """`case` with every default filled in; `figures` with how each is known, by dotted key; and
    their values, by the parts of that key. Parts of memory are each at their own largest, the peak
    is at one moment.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    case: Case
    training: dict[str, JsonValue]
    serving: dict[str, JsonValue]
    latency: dict[str, JsonValue]
    storage: dict[str, JsonValue]
    quality: dict[str, JsonValue]
    trainable_parameters: int
    classifier_parameters: int | None = None
    adapter_bytes: int
    figures: dict[str, Figure]


def estimate(case: Case) -> Estimate:
    """Every figure of the case; raises UsageError for what cannot be."""
    chosen = method(case.method)
    case = stated(case, chosen)
    scenario = resolve(case_spec(case, chosen))
    adapter = _adapter(scenario, case)
    form = Form(served_format(case.format), case.export or chosen.serves[0], case.precision)
    refused = form_refusal(scenario, chosen, adapter.rank, form)
    if refused is not None:
        whole = form._replace(export="merged", precision="exact")
        mended = form_refusal(scenario, chosen, adapter.rank, whole) is None
        raise UsageError(
            f"{refused.subject}: {refused.reason}", hint="take --export merged" if mended else None
        )
    step = step_of(scenario, adapter, case.format, case.checkpointing, case.batch_size)._replace(
        adapter_dtype=case.adapter_dtype or "fp32",
        attention=case.attention or "flash",
        optimizer=case.optimizer,
        loss=case.loss,
        dropout=case.dropout,
        framework=FRAMEWORKS[case.framework] if case.framework else None,
    )
    micro = cost_of(scenario, adapter.cost, step)
    found = evaluated(scenario, _stored(adapter, case), form, micro.required_bytes)
    schedule = training(scenario, -(-scenario.rows // micro.examples))
    named = figures(scenario, found, micro, schedule)
    if case.adapter_dtype is not None:
        source = f"{COUNT_SOURCE}, {case.adapter_dtype}"
        named["adapter_bytes"] = named["adapter_bytes"].model_copy(update={"source": source})
    reason = _unbuilt(case, scenario.architecture)
    if reason:
        named = {key: _assumed(key, value, reason) for key, value in named.items()}
    case = case.model_copy(
        update={
            "targets": None if chosen.trains_base else adapter.targets or None,
            "labels": None if scenario.causal else scenario.labels,
            "active_tenants": scenario.active_tenants,
            "slots": scenario.slots,
            "concurrency": scenario.concurrency if scenario.causal else None,
            "context_length": scenario.context_length,
            "prompt_tokens": scenario.prompt_tokens,
        }
    )
    return Estimate.model_validate({"case": case, "figures": named, **nested(named)})


def _stored(adapter: Adapter, case: Case) -> Adapter:
    """The adapter with a file of numbers as wide as they are while training."""
    width = COMPUTE_BYTES[case.adapter_dtype or "fp32"]
    numbers = adapter.cost.stored_bytes // FLOAT_BYTES
    return adapter._replace(cost=adapter.cost._replace(stored_bytes=width * numbers))


def _unbuilt(case: Case, shape: Architecture) -> str | None:
    """Why the compiler cannot be what the case is of, or None."""
    if case.framework != "paretune":
        return None
    if case.format in ("int8", "nf4_single"):
        return f"the compiler does not build {case.format} bases"
    if shape.writes_scores:
        return f"the compiler does not build attention without a kernel, as {shape.model_type} has"
    return None


def _assumed(key: str, found: Figure, reason: str) -> Figure:
    """What the compiler would do is assumed where it does not do it."""
    if not key.startswith("training.") or found.evidence != "derived":
        return found
    return assumed(found, reason)


def _adapter(scenario: Scenario, case: Case) -> Adapter:
    """The first that the pins leave: the method's own targets where none are named."""
    first = next(iter(adapters(scenario, unbuildable=True)))
    if isinstance(first, Refusal):
        raise UsageError(f"{first.subject}: {first.reason}")
    if case.targets is not None:
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
