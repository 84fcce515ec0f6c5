"""The adapter file: the same after a round trip, and refused when anything in it is off."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from compiler import adapter as adapters
from compiler.adapter import uniform
from planner.errors import IncompatibleError
from planner.method import Target

TARGETS = (Target("q", "attention.query", 6, 8), Target("down", "mlp.down", 8, 16))


def example():
    random = np.random.default_rng(1)
    tensors = {}
    for target in TARGETS:
        tensors[f"{target.name}.lora_A"] = random.normal(size=(2, target.in_features))
        tensors[f"{target.name}.lora_B"] = random.normal(size=(target.out_features, 2))
    return uniform(
        method="rslora",
        rank=2,
        alpha=3.0,
        targets=TARGETS,
        tensors={name: tensor.astype(np.float32) for name, tensor in tensors.items()},
        base_digest="ab" * 32,
        seed=7,
        template="chat",
    )


def without_tensors(adapter):
    return {name: value for name, value in vars(adapter).items() if name != "tensors"}


def test_an_adapter_survives_its_file(tmp_path):
    adapter = example()
    adapters.save(adapter, tmp_path / "a")
    again = adapters.load(tmp_path / "a")
    assert without_tensors(again) == without_tensors(adapter)
    assert again.tensors.keys() == adapter.tensors.keys()
    assert all(np.array_equal(again.tensors[n], t) for n, t in adapter.tensors.items())


def test_the_same_adapter_has_the_same_bytes(tmp_path):
    adapter = example()
    backwards = dict(reversed(adapter.tensors.items()))
    adapters.save(adapter, tmp_path / "a")
    adapters.save(replace(adapter, tensors=backwards), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_scalings_are_the_effective_ones():
    assert example().scalings == {"q": pytest.approx(3 / 2**0.5), "down": pytest.approx(3 / 2**0.5)}


def changed(adapter, **tensors):
    kept = {name: t for name, t in {**adapter.tensors, **tensors}.items() if t is not None}
    return replace(adapter, tensors=kept)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"q.lora_A": None}, r"lacks \['q.lora_A'\] and has nothing too many"),
        ({"v.lora_A": np.ones((2, 8), np.float32)}, r"lacks nothing and has \['v.lora_A'\]"),
        ({"q.lora_A": np.ones((3, 8), np.float32)}, r"shape \[3, 8\], but \[2, 8\] is needed"),
        ({"q.lora_A": np.full((2, 8), np.nan, np.float32)}, "holds NaN or infinity"),
        ({"classifier.weight": np.ones((2, 8), np.float32)}, "but the adapter has 0 labels"),
    ],
)
def test_tensors_that_are_not_the_methods_are_refused(tensors, message):
    with pytest.raises(IncompatibleError, match=message):
        adapters.check(changed(example(), **tensors))


def test_a_target_that_the_method_does_not_adapt_is_refused():
    targets = (Target("gate", "router", 6, 8), *TARGETS[1:])
    adapter = replace(example(), method="ia3", targets=targets, scalings={"gate": 1, "down": 1})
    with pytest.raises(IncompatibleError, match=r"adapts no target of role 'router' \('gate'"):
        adapters.check(adapter)


def test_a_truncated_file_is_refused(tmp_path):
    adapters.save(example(), tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-5])
    with pytest.raises(IncompatibleError, match="is not a safetensors file"):
        adapters.load(tmp_path / "a")


def test_another_programs_file_is_refused(tmp_path):
    safetensors.numpy.save_file({"x": np.ones(3, np.float32)}, tmp_path / "a")
    with pytest.raises(IncompatibleError, match="is not an adapter of this program"):
        adapters.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": "two"}, "is not valid at rank"),
        ({"extra": 1}, "is not valid at extra"),
        ({"scalings": {}}, "targets .* and scalings do not agree"),
        ({"scalings": {"q": 1.0, "down": float("inf")}}, "not finite"),
    ],
)
def test_a_header_that_is_off_is_refused(tmp_path, change, message):
    adapters.save(example(), tmp_path / "a")
    with safetensors.safe_open(tmp_path / "a", framework="numpy") as file:
        header = json.loads(file.metadata()["paretune"]) | change
    metadata = {"paretune": json.dumps(header)}
    safetensors.numpy.save_file(dict(example().tensors), tmp_path / "a", metadata=metadata)
    with pytest.raises(IncompatibleError, match=message):
        adapters.load(tmp_path / "a")
