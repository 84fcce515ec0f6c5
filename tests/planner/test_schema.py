"""The published schemas, and proof that every field of a spec is read."""

import json
from collections.abc import Iterator
from dataclasses import fields
from functools import cache

import pytest

from planner import Spec, catalog, recommend
from planner.commands.schema import DOCUMENTS
from planner.errors import ParetuneError, Relaxation
from planner.relaxations import applied
from planner.section import Section
from planner.spec import Data, Hardware, Pinned, Serving, TrainingSpec

SECTIONS: dict[str, type[Section]] = {
    "training": TrainingSpec,
    "training.hardware": Hardware,
    "serving": Serving,
    "serving.hardware": Hardware,
    "data": Data,
    "pinned": Pinned,
}


@pytest.mark.parametrize(("name", "kind"), DOCUMENTS.items())
def test_published_schema_is_the_code_s(name: str, kind: type[Section]) -> None:
    """After a change: planner schema NAME > specs/schema/NAME.json."""
    published = json.loads((catalog.specs_folder() / "schema" / f"{name}.json").read_text())
    assert published == kind.model_json_schema()


def leaves() -> Iterator[str]:
    for each in fields(Spec):
        if each.name not in SECTIONS:
            yield each.name
    for section, kind in SECTIONS.items():
        for each in fields(kind):
            yield f"{section}.{each.name}"


CPU = {
    "kind": "cpu",
    "memory_gib": 16,
    "bandwidth_gb_per_second": 20,
    "fp32_tflops": 0.2,
}
LM = {
    "model": "smollm2-135m",
    "task": "causal_lm",
    "vram_gib": 16,
    "training": {"hardware": CPU},
    "serving": {"hardware": CPU, "tenants": 4},
}
CLASSIFIER = LM | {"model": "all-minilm-l6-v2", "task": "sequence_classification"}

OTHER: dict[str, object] = {
    "schema_version": 2,
    "model": "smollm2-360m",
    "task": "sequence_classification",
    "vram_gib": 1.5,
    "family": "code",
    "priority": "storage",
    "training.hardware": None,
    "training.epochs": 1,
    "training.max_steps": 7,
    "training.learning_rate": 0.01,
    "training.packing": True,
    "training.evaluate_every": 3,
    "training.checkpoint_every": 4,
    "training.patience": 9,
    "training.seed": 5,
    "training.hardware.kind": "gpu",
    "training.hardware.memory_gib": 8,
    "training.hardware.bandwidth_gb_per_second": None,
    "training.hardware.fp32_tflops": 2,
    "training.hardware.bf16_tflops": 1,
    "training.hardware.fp16_tflops": 1,
    "training.hardware.int8_tops": 3,
    "training.hardware.price_per_hour_usd": 2,
    "training.hardware.measured": True,
    "serving.hardware": "cpu-16core",
    "serving.memory_gib": 1.2,
    "serving.tenants": 9,
    "serving.active_tenants": 2,
    "serving.slots": 3,
    "serving.concurrency": 3,
    "serving.context_length": 64,
    "serving.prompt_tokens": 10,
    "serving.first_token_ms": 1,
    "serving.per_token_ms": 1,
    "serving.runtime": "onnxruntime",
    "serving.hardware.kind": "gpu",
    "serving.hardware.memory_gib": 2,
    "serving.hardware.bandwidth_gb_per_second": 1,
    "serving.hardware.fp32_tflops": None,
    "serving.hardware.bf16_tflops": 1,
    "serving.hardware.fp16_tflops": 1,
    "serving.hardware.int8_tops": 3,
    "serving.hardware.price_per_hour_usd": 2,
    "serving.hardware.measured": True,
    "data.examples": 17,
    "data.mean_tokens": 99,
    "data.labels": 7,
    "pinned.method": "dora",
    "pinned.rank": 5,
    "pinned.alpha": 3,
    "pinned.targets": ["mlp.up"],
    "pinned.format": "nf4",
    "pinned.compute": "bf16",
    "pinned.batch_size": 3,
    "pinned.gradient_accumulation": 5,
    "pinned.sequence_length": 77,
    "pinned.checkpointing": "block",
    "pinned.export": "merged",
    "pinned.precision": "fast",
}
NEEDS_CLASSIFIER = {"data.labels"}
NEEDS_FAST = {"training.hardware.int8_tops", "serving.hardware.int8_tops"}
NEEDS_HALF_RUNTIME = {
    "serving.hardware.bf16_tflops",
    "serving.hardware.fp16_tflops",
    "training.hardware.fp16_tflops",
}


@cache
def base(path: str) -> Spec:
    """The spec in which that field can matter."""
    if path in NEEDS_CLASSIFIER:
        return Spec.model_validate(CLASSIFIER)
    spec = Spec.model_validate(LM)
    if path in NEEDS_FAST:
        # Only products with int8 activations run at that rate, and only served ones.
        served = {"serving.hardware": None} if path.startswith("training") else {}
        return applied(spec, Relaxation("", {"pinned.precision": "fast", **served})) or spec
    if path in NEEDS_HALF_RUNTIME:
        served = {"serving.hardware": None} if path.startswith("training") else {}
        return applied(spec, Relaxation("", {"serving.runtime": "llama.cpp", **served})) or spec
    return spec


OUTCOMES: dict[str, object] = {}


def outcome(spec: Spec | None) -> object:
    """Everything a user sees of a spec but the spec itself."""
    if spec is None:
        return "no spec"
    text = spec.model_dump_json()
    if text not in OUTCOMES:
        try:
            OUTCOMES[text] = recommend(spec).model_dump(exclude={"spec"})
        except ParetuneError as error:
            OUTCOMES[text] = (type(error), str(error), error.hint)
    return OUTCOMES[text]


def test_every_field_has_a_second_value_here() -> None:
    assert set(OTHER) == set(leaves())


@pytest.mark.parametrize("path", OTHER)
def test_every_field_changes_the_outcome(path: str) -> None:
    changed = applied(base(path), Relaxation("", {path: OTHER[path]}))
    assert outcome(changed) != outcome(base(path))
