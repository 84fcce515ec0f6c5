"""The numbers of a plan, each with its evidence, its source and its band; units in the keys."""

from typing import TYPE_CHECKING

from planner.cost import rates
from planner.cost.memory import LIVE_BAND, STORED_BAND, row_bytes
from planner.cost.reserved import reserved
from planner.cost.work import TIME_BAND, Work, cost_usd
from planner.cut import Micro, compute_of
from planner.evaluate import Evaluated, load_of, passes, serving_compute, tokens_per_second
from planner.forms import Form
from planner.home import CORRECTIONS, home
from planner.plan import Evidence, Figure, Training, figure
from planner.quality import UNKNOWN, method_quality, unranked
from planner.runtime import unloadable, untried
from planner.scenario import Scenario, lacks_bf16
from planner.spec import Hardware

if TYPE_CHECKING:
    from planner.calibration_builds import Correction

RESERVED_SOURCE = "allocated, and what a caching allocator leaves idle (planner.cost.reserved)"
MEMORY_SOURCE = "closed form over the model's shapes (planner.cost.memory)"
PRICE_SOURCE = "seconds at the hardware's price by the hour"
UNPRICED_SOURCE = "the hardware's price by the hour, or the time, is unknown"
UNKNOWN_SOURCE = "bandwidth or peak of the hardware is unknown"
COUNT_SOURCE = "sum of the shapes the method declares"


def figures(
    scenario: Scenario, chosen: Evaluated, micro: Micro, schedule: Training
) -> dict[str, Figure]:
    memory, cost = micro.memory, chosen.adapter.cost
    found = {
        "training.peak_allocated_bytes": _bytes(
            memory.peak_allocated_bytes, memory.half_width_bytes
        ),
        "training.peak_reserved_bytes": _exact(
            reserved(memory, scenario.training.kind).reserved_bytes, "assumed", RESERVED_SOURCE
        ),
        "training.required_bytes": _exact(
            micro.required_bytes, "assumed", "top of the band and what the device reserves"
        ),
    }
    found |= _parts("training", memory.parts())
    total = _total_seconds(scenario, micro, schedule)
    constants = micro.work.constants(scenario.training, compute_of(scenario))
    length = f"{schedule.epochs:g} epochs"
    if schedule.max_steps:
        length = f"{schedule.max_steps:,} steps"
    found |= _training_time(
        scenario, micro.step_seconds, total, constants, f"{scenario.examples:,} examples, {length}"
    )
    found["trainable_parameters"] = _exact(cost.trainable_parameters, "derived", COUNT_SOURCE)
    if not scenario.causal:
        head = scenario.labels * (scenario.architecture.hidden + 1)
        found["classifier_parameters"] = _exact(head, "derived", "labels x (width + 1)")
    found["adapter_bytes"] = _exact(cost.stored_bytes, "derived", COUNT_SOURCE + ", fp32")
    found |= _serving(scenario, chosen)
    found["quality.difference_points"] = _points(scenario, chosen)
    return found


def _training_time(
    scenario: Scenario,
    step: float | None,
    total: float | None,
    constants: tuple[str, ...],
    data: str,
) -> dict[str, Figure]:
    """Corrected by what builds on this machine took, where enough of them are known."""
    device = scenario.training
    found = {}
    rows = f"rows of {scenario.row_tokens:,} tokens"
    for name, seconds in (("step_seconds", step), ("total_seconds", total)):
        key = f"training.{name}"
        found[key] = _noted(_seconds(seconds, device, constants), rows)
        if seconds is None and compute_of(scenario) == "bf16" and lacks_bf16(device):
            choice = scenario.spec.training.hardware
            name = choice if isinstance(choice, str) else "the training hardware"
            source = f"{name} has no bf16 arithmetic"
            found[key] = figure(value=None, evidence="assumed", source=source)
        learned = _learned(key, scenario)
        if learned is not None and seconds is not None:
            found[f"training.uncorrected_{name}"] = found[key]
            found[key] = _noted(_corrected(seconds, learned), rows)
    whole = found["training.total_seconds"] = _noted(found["training.total_seconds"], data)
    price = cost_usd(whole.value, device)
    found["training.cost_usd"] = _money(price, whole)
    return found


def _noted(found: Figure, note: str) -> Figure:
    """A known figure that says what it is of."""
    if found.value is None:
        return found
    return found.model_copy(update={"source": f"{found.source}; {note}"})


def _learned(key: str, scenario: Scenario) -> "Correction | None":
    if not (home() / CORRECTIONS).is_file():
        return None
    from planner.calibration_builds import correction, hardware_key  # noqa: PLC0415

    return correction(key, hardware_key(scenario.spec.training.hardware))


def _corrected(seconds: float, learned: "Correction") -> Figure:
    return figure(
        value=seconds * learned.factor,
        evidence="measured",
        source=f"{learned.builds} builds on this machine took {learned.factor:.2f} x the roofline",
        low=seconds * learned.low,
        high=seconds * learned.high,
    )


def _serving(scenario: Scenario, chosen: Evaluated) -> dict[str, Figure]:
    serving, cost = chosen.serving, chosen.adapter.cost
    memory = serving.memory
    found = {
        "serving.memory_bytes": _bytes(memory.total_bytes, memory.half_width_bytes),
        "serving.required_bytes": _exact(
            serving.required_bytes, "assumed", "top of the band and what the device reserves"
        ),
    }
    found |= _parts("serving", memory.parts())
    new = _unproven(scenario, chosen.form)
    if new is not None:
        found = {key: assumed(value, new) for key, value in found.items()}
    if chosen.form.export == "unmerged":
        found["serving.row_bytes"] = _exact(
            row_bytes(cost, load_of(scenario)),
            "derived",
            "parts of the update in the bank, in the runtime's type",
        )
    found["storage.total_bytes"] = _bytes(
        serving.storage_bytes, STORED_BAND * serving.storage_bytes
    )
    first, each = passes(scenario, cost, chosen.form)
    found["latency.first_token_seconds"] = _served_seconds(
        serving.first_token_seconds, scenario, new, first
    )
    if scenario.causal:
        rate = tokens_per_second(scenario, cost, chosen.form)
        found["latency.per_token_seconds"] = _served_seconds(
            serving.per_token_seconds, scenario, new, each
        )
        found["latency.tokens_per_second"] = _served_seconds(rate, scenario, new, first, each)
        spent = None if rate is None else 1e6 / rate
        million = _served_seconds(spent, scenario, new, first, each)
        price = cost_usd(million.value, scenario.serving)
        found["serving.usd_per_million_tokens"] = _money(price, million)
    return found


def _total_seconds(scenario: Scenario, micro: Micro, schedule: Training) -> float | None:
    """One tenant's training."""
    if micro.step_seconds is None:
        return None
    steps = -(-scenario.rows * schedule.epochs // micro.examples)
    return micro.step_seconds * (schedule.max_steps or steps)


LIVE_PARTS = ("activations_bytes", "logits_bytes", "workspace_bytes")


def _parts(place: str, parts: dict[str, float]) -> dict[str, Figure]:
    return {
        f"{place}.parts.{name}": _bytes(
            value, value * (LIVE_BAND if name in LIVE_PARTS else STORED_BAND)
        )
        for name, value in parts.items()
    }


def _bytes(value: float, half_width: float) -> Figure:
    return figure(
        value=value,
        evidence="derived",
        source=MEMORY_SOURCE,
        low=value - half_width,
        high=value + half_width,
    )


def _seconds(value: float | None, device: Hardware, constants: tuple[str, ...]) -> Figure:
    """A time, or what a time decides."""
    if value is None:
        return figure(value=None, evidence="assumed", source=UNKNOWN_SOURCE)
    return figure(
        value=value,
        evidence=rates.evidence(device, constants),
        source=f"{rates.source(device, constants)} (planner.cost.work)",
        low=value * (1 - TIME_BAND),
        high=value * (1 + TIME_BAND),
    )


def _unproven(scenario: Scenario, form: Form) -> str | None:
    """Why the runtime cannot have served in that form on such a device, or None."""
    runtime, kind = scenario.spec.serving.runtime, scenario.serving.kind
    return unloadable(runtime, kind, form.format) or untried(runtime, kind)


def assumed(found: Figure, reason: str) -> Figure:
    """The same figure, no better known than that."""
    return found.model_copy(update={"evidence": "assumed", "source": f"{found.source}; {reason}"})


def _served_seconds(
    value: float | None, scenario: Scenario, new: str | None, *works: Work
) -> Figure:
    """Of those passes; assumed where it is `new` that the runtime should run them."""
    device, arithmetic = scenario.serving, serving_compute(scenario)
    used = [name for work in works for name in work.constants(device, arithmetic)]
    found = _seconds(value, device, tuple(dict.fromkeys(used)))
    return found if new is None or value is None else assumed(found, new)


def _money(price: float | None, time: Figure) -> Figure:
    """As sure as the time that it is paid for."""
    if price is None or not time.value:
        return figure(value=None, evidence="assumed", source=UNPRICED_SOURCE)
    ratio = price / time.value
    return figure(
        value=price,
        evidence=time.evidence,
        source=PRICE_SOURCE,
        low=None if time.low is None else time.low * ratio,
        high=None if time.high is None else time.high * ratio,
    )


def _exact(value: float, evidence: Evidence, source: str) -> Figure:
    return figure(value=value, evidence=evidence, source=source)


def _points(scenario: Scenario, chosen: Evaluated) -> Figure:
    name, quality = chosen.adapter.method.name, chosen.quality
    if method_quality(name, scenario.family) is None:
        spread = f"weighed as LoRA's equal, give or take {UNKNOWN.half_width:g} points"
        return figure(value=None, evidence="assumed", source=f"{unranked(name)}; {spread}")
    return figure(
        value=quality.points,
        evidence="derived",
        source="published differences and declared causes, against LoRA on all linears of a "
        "16-bit base (planner.quality)",
        low=quality.points - quality.half_width,
        high=quality.points + quality.half_width,
    )
