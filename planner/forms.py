"""How the base may be stored and tenants served, and why a form is left out."""

from functools import lru_cache
from itertools import product
from typing import NamedTuple

from planner.method import Method
from planner.quality import Quality, format_quality, noise, serving_quality
from planner.runtime import RUNTIMES, refusal, unloadable
from planner.scenario import Scenario, lacks_bf16


class Form(NamedTuple):
    """How the base is stored and how tenants are served."""

    format: str
    export: str
    precision: str

    def describe(self) -> str:
        fast = ", fast" if self.precision == "fast" else ""
        return f"{self.format} base, {self.export}{fast}"


class Refusal(NamedTuple):
    """A choice that no number can mend: what and why."""

    subject: str
    constraint: str
    reason: str


@lru_cache(maxsize=1024)
def forms(scenario: Scenario, found: Method, rank: int | None) -> tuple[Form | Refusal, ...]:
    """Every format, export and precision for that method, or why one is left out."""
    pinned = scenario.spec.pinned
    formats = (pinned.format,) if pinned.format else ("fp32", "bf16", "nf4")
    exports = (pinned.export,) if pinned.export else ("unmerged", "merged")
    precisions = (pinned.precision,) if pinned.precision else _precisions(scenario)
    weighed: list[Form | Refusal] = []
    for format_ in formats:
        refused = _format_refusal(scenario, found, format_)
        if refused is not None:
            weighed.append(refused)
            continue
        for export, precision in product(exports, precisions):
            form = Form(format_, export, precision)
            weighed.append(form_refusal(scenario, found, rank, form) or form)
    return tuple(weighed)


def _precisions(scenario: Scenario) -> tuple[str, ...]:
    """Fast is weighed only where speed was asked for."""
    asked = scenario.first_token_seconds or scenario.per_token_seconds
    hurried = asked is not None or scenario.spec.priority == "latency"
    return ("exact", "fast") if hurried else ("exact",)


def _format_refusal(scenario: Scenario, found: Method, format_: str) -> Refusal | None:
    base, runtime, kind = f"{format_} base", scenario.spec.serving.runtime, scenario.serving.kind
    unloaded = unloadable(runtime, kind, format_)
    if unloaded is not None:
        return Refusal(base, "runtime", unloaded)
    # A runtime that loads no fp32 base has 16 bits as the only dense one.
    spared = unloadable(runtime, kind, "fp32") is None
    widened = format_ == "bf16" and lacks_bf16(scenario.training)
    if widened and spared and scenario.spec.pinned.format is None:
        reason = "the training hardware has no bf16 arithmetic and would widen it at every use"
        return Refusal(base, "format", reason)
    if format_ not in found.formats:
        reason = f"{found.name} trains on {' or '.join(found.formats)} only"
        return Refusal(f"{found.name}, {base}", "format", reason)
    return None


def form_refusal(scenario: Scenario, found: Method, rank: int | None, form: Form) -> Refusal | None:
    """Why the method cannot be served in that form by the scenario's runtime, or None."""
    name, runtime = found.name, scenario.spec.serving.runtime
    if form.export not in found.serves:
        reason = f"{name} can only be served {' or '.join(found.serves)}"
        return Refusal(f"{name}, {form.export}", "export", reason)
    if form.precision == "fast" and (form.format != "nf4" or form.export == "merged"):
        return Refusal("fast precision", "precision", "fast needs an unmerged nf4 base")
    if form.precision not in RUNTIMES[runtime].precisions:
        return Refusal("fast precision", "runtime", f"{runtime} has no fast arithmetic")
    task, family = scenario.spec.task, scenario.architecture.model_type
    refused = refusal(runtime, task, family, found, rank, form.export)
    return Refusal(f"{name}, {form.export}", "runtime", refused) if refused else None


def form_quality(scenario: Scenario, form: Form) -> Quality:
    """Points that the form adds to its adapter's, and the noise of any measurement."""
    shape = scenario.architecture
    decoder = shape.kind == "decoder"
    found = format_quality(scenario.family, form.format, shape.parameters, decoder=decoder)
    return found + serving_quality(form.format, form.export, form.precision) + noise()
