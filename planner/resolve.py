"""From a spec to the scenario: every default filled in, every name looked up."""

from planner import catalog
from planner.architecture import Architecture
from planner.cost.rates import reached
from planner.errors import UsageError
from planner.evaluate import serving_compute
from planner.method import method
from planner.runtime import serving_runtimes
from planner.scenario import GENERATES, GIB, Scenario
from planner.spec import Family, Hardware, Spec, Task

GB = 10**9
ROUNDED = 1.02
"""A device is sold by its GiB or its GB, rounded: an L4 of 22.49 GiB or 24.15 GB as 24."""
DEFAULT_EXAMPLES = 5000
DEFAULT_LABELS = 2
DEFAULT_CONTEXT = 2048
DEFAULT_MEAN_TOKENS = {"causal_lm": 256, "seq2seq_lm": 256, "sequence_classification": 64}
DEFAULT_FAMILY: dict[str, Family] = {
    "causal_lm": "instruction",
    "seq2seq_lm": "instruction",
    "sequence_classification": "classification",
    "image_classification": "image",
}
EFFECTIVE_BATCH = {
    "causal_lm": 8,
    "seq2seq_lm": 8,
    "sequence_classification": 16,
    "image_classification": 32,
}
"""Examples per optimizer step; LoRA loses at large batches whatever its rank (claim-batch-size)."""
LENGTH_SPREAD = 4
"""Longest example kept, in mean lengths; the rest is truncated."""


def resolve(spec: Spec) -> Scenario:
    """Fill the defaults and look up the names; raises UsageError for what cannot be."""
    model = catalog.model(spec.model)
    shape = model.architecture
    _check_task(spec, shape)
    _check_training(spec)
    _check_pinned(spec)
    notes: list[str] = []
    training, serving = _hardware(spec, notes)
    budget = min(spec.serving.memory_gib or serving.memory_gib, serving.memory_gib)
    mean = _mean_tokens(spec, shape)
    length = _sequence_length(spec, shape, mean)
    context = _context(spec, shape)
    prompt = _prompt(spec, context, mean)
    notes += _data_notes(spec, mean, length)
    notes += _serving_notes(spec, context, prompt)
    active = _active(spec)
    slots = min(spec.serving.slots or active, active)
    scenario = Scenario(
        spec=spec,
        model=model,
        family=spec.family or DEFAULT_FAMILY[spec.task],
        training=training,
        serving=serving,
        training_budget_bytes=min(spec.vram_gib, training.memory_gib) * GIB,
        serving_budget_bytes=budget * GIB,
        tenants=spec.serving.tenants,
        active_tenants=active,
        slots=slots,
        concurrency=spec.serving.concurrency or slots,
        context_length=context,
        prompt_tokens=prompt,
        first_token_seconds=_seconds(spec.serving.first_token_ms),
        per_token_seconds=_seconds(spec.serving.per_token_ms),
        examples=spec.data.examples or DEFAULT_EXAMPLES,
        mean_tokens=mean,
        labels=spec.data.labels or DEFAULT_LABELS,
        sequence_length=length,
        effective_batch=EFFECTIVE_BATCH[spec.task],
        assumptions=tuple(notes),
    )
    _check_budgets(scenario)
    return scenario


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _mean_tokens(spec: Spec, shape: Architecture) -> int:
    """Every image has as many tokens as the model has places."""
    if spec.task == "image_classification":
        return shape.positions
    return spec.data.mean_tokens or DEFAULT_MEAN_TOKENS[spec.task]


def task_of(shape: Architecture) -> Task:
    """The task that a model of that kind is trained for."""
    if shape.model_type == "vit":
        return "image_classification"
    tasks: dict[str, Task] = {"decoder": "causal_lm", "encoder_decoder": "seq2seq_lm"}
    return tasks.get(shape.kind, "sequence_classification")


def _check_task(spec: Spec, shape: Architecture) -> None:
    wanted = task_of(shape)
    if spec.task != wanted:
        noun = shape.kind.replace("_", "-")
        raise UsageError(
            f"task '{spec.task}' is not for {shape.model_type}, whose kind is {noun}",
            hint=f"use task '{wanted}', or another model",
        )
    runtime, able = spec.serving.runtime, serving_runtimes(spec.task, shape.model_type)
    if runtime not in able:
        raise UsageError(
            f"the runtime {runtime} does not serve the task '{spec.task}' with models of the "
            f"family '{shape.model_type}'",
            hint=f"use serving.runtime {' or '.join(able)}",
        )
    generates = spec.task in GENERATES
    if generates and spec.data.labels is not None:
        raise UsageError(f"data.labels is for classifiers and the task is '{spec.task}'")
    if not generates and spec.serving.per_token_ms is not None:
        raise UsageError(
            "serving.per_token_ms is for models that write; a classifier answers in one pass",
            hint="give serving.first_token_ms",
        )
    if not generates and spec.serving.concurrency is not None:
        raise UsageError(
            f"serving.concurrency {spec.serving.concurrency} is for models that write; a "
            "classifier answers in one pass"
        )
    if spec.task == "image_classification" and spec.data.mean_tokens is not None:
        raise UsageError(
            f"data.mean_tokens {spec.data.mean_tokens}: every image is {shape.positions} tokens"
        )


def _check_training(spec: Spec) -> None:
    if spec.training.max_steps is not None and spec.training.epochs is not None:
        raise UsageError(
            f"training.max_steps {spec.training.max_steps} and training.epochs "
            f"{spec.training.epochs:g} both say how long to train",
            hint="give one of them",
        )
    if spec.task != "causal_lm" and spec.training.packing:
        raise UsageError(
            f"training.packing lays texts end to end, and the task '{spec.task}' has none to lay so"
        )


def _check_pinned(spec: Spec) -> None:
    """A pinned method is known and has what is pinned with it."""
    if spec.pinned.method is None:
        return
    found = method(spec.pinned.method)
    for name, has in (("rank", bool(found.ranks)), ("alpha", found.default_alpha is not None)):
        value = getattr(spec.pinned, name)
        if value is not None and not has:
            raise UsageError(f"pinned.{name} {value:g}: {found.name} has no {name}")


def _hardware(spec: Spec, notes: list[str]) -> tuple[Hardware, Hardware]:
    """Training and serving device; an unnamed one is a GPU of `vram_gib` and unknown speed."""
    if spec.training.hardware is None:
        training = Hardware(kind="gpu", memory_gib=spec.vram_gib)
        notes.append(f"training on a gpu with {spec.vram_gib:g} GiB, speed unknown")
    else:
        training = catalog.hardware(spec.training.hardware)
    _check_size("vram_gib", spec.vram_gib, "training", training, notes)
    if spec.serving.hardware is None:
        notes.append("serving on the training hardware")
        return training, training
    serving = catalog.hardware(spec.serving.hardware)
    _check_size("serving.memory_gib", spec.serving.memory_gib or 0, "serving", serving, notes)
    return training, serving


def _check_size(key: str, stated: float, place: str, device: Hardware, notes: list[str]) -> None:
    """A size that the device is sold as means all that it has; a larger one is refused."""
    real = device.memory_gib
    if stated <= real:
        return
    gigabytes = real * GIB / GB
    if stated > ROUNDED * real and not gigabytes / ROUNDED <= stated <= gigabytes:
        raise UsageError(f"{key} {stated:g} is more than the {place} hardware's {real:g} GiB")
    notes.append(f"{key} {stated:g} means all {real:g} GiB of the {place} hardware")


def _sequence_length(spec: Spec, shape: Architecture, mean: int) -> int:
    """Tokens per training example, at most what the model has positions for."""
    limit = shape.positions or LENGTH_SPREAD * mean + 64
    pinned = spec.pinned.sequence_length
    if pinned is not None and pinned > limit:
        raise UsageError(f"pinned.sequence_length {pinned} is more than the model's {limit}")
    return pinned or min(-(-LENGTH_SPREAD * mean // 64) * 64, limit)


def _context(spec: Spec, shape: Architecture) -> int:
    context = spec.serving.context_length
    if context is None:
        return min(DEFAULT_CONTEXT, shape.positions or DEFAULT_CONTEXT)
    if shape.positions and context > shape.positions:
        raise UsageError(
            f"serving.context_length {context} is more than the model's {shape.positions}"
        )
    return context


def _active(spec: Spec) -> int:
    active = spec.serving.active_tenants or spec.serving.tenants
    if active > spec.serving.tenants:
        raise UsageError(
            f"serving.active_tenants {active} is more than serving.tenants {spec.serving.tenants}"
        )
    return active


def _prompt(spec: Spec, context: int, mean: int) -> int:
    """What is read at once: half of the context, or what a classifier's examples have."""
    prompt = spec.serving.prompt_tokens
    if prompt is None:
        return max(1, context // 2) if spec.task in GENERATES else min(mean, context)
    if prompt > context:
        raise UsageError(f"serving.prompt_tokens {prompt} is more than the context of {context}")
    return prompt


def _data_notes(spec: Spec, mean: int, length: int) -> list[str]:
    notes = []
    if spec.data.examples is None:
        notes.append(f"{DEFAULT_EXAMPLES} examples per tenant")
    if spec.data.mean_tokens is None and spec.task != "image_classification":
        notes.append(f"{mean} tokens per example on average")
    if spec.pinned.sequence_length is None:
        notes.append(f"examples truncated to {length} tokens")
    if spec.task not in GENERATES and spec.data.labels is None:
        notes.append(f"{DEFAULT_LABELS} labels")
    return notes


def _serving_notes(spec: Spec, context: int, prompt: int) -> list[str]:
    notes = []
    if spec.serving.context_length is None and spec.task in GENERATES:
        notes.append(f"{context} tokens of context")
    if spec.serving.prompt_tokens is None:
        noun = "prompts" if spec.task in GENERATES else "requests"
        notes.append(f"{noun} of {prompt} tokens")
    return notes


def _check_budgets(scenario: Scenario) -> None:
    """A latency budget needs the figures that it is checked with."""
    budgets = (scenario.first_token_seconds, scenario.per_token_seconds)
    device = scenario.serving
    if budgets == (None, None):
        return
    compute = serving_compute(scenario)
    if reached(device, compute) is None:
        raise UsageError(
            "a latency budget needs the serving hardware's bandwidth_gb_per_second and "
            f"{compute}_tflops",
            hint="name a device that `planner hardware` lists, or give the figures",
        )
