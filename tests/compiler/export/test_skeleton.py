"""The skeleton, run with its weights in: every size that the form names may change."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from compiler.engine import Engine
from compiler.export import skeleton as skeletons
from compiler.export.form import Form, Port, Repeated, shortened
from compiler.export.repeat_layers import Declined, check_alike
from compiler.export.unmerged import write_unmerged
from planner.errors import ParetuneError

TOLERANCE = 1e-4
"""Of logits of a few units: float32 sums in another order, five layers deep."""


@pytest.fixture(scope="module")
def engine(llama, kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("base")
    write_unmerged(llama.skeleton, llama.model.state_dict(), (), folder, precision="exact")
    return kit.load(folder)


def test_logits_without_past(llama, engine: Engine, kit: ModuleType, prompt) -> None:
    logits, _ = kit.step(engine, prompt, np.ones_like(prompt))
    expected = llama.model(torch.from_numpy(prompt)).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


def test_logits_with_past(llama, engine: Engine, kit: ModuleType, prompt) -> None:
    _, cache = kit.step(engine, prompt[:, :7], np.ones_like(prompt[:, :7]))
    logits, _ = kit.step(engine, prompt[:, 7:], np.ones_like(prompt), cache=cache)
    expected = llama.model(torch.from_numpy(prompt)).logits.numpy()[:, 7:]
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


def test_left_padding_changes_nothing(llama, engine: Engine, kit: ModuleType, prompt) -> None:
    padded = np.concatenate([np.zeros((3, 4), np.int64), prompt[:, :10]], axis=1)
    mask = np.concatenate([np.zeros((3, 4), np.int64), np.ones((3, 10), np.int64)], axis=1)
    _, cache = kit.step(engine, padded, mask)
    longer = np.concatenate([mask, np.ones((3, 1), np.int64)], axis=1)
    logits, _ = kit.step(engine, prompt[:, 10:], longer, cache=cache)
    expected = llama.model(torch.from_numpy(prompt)).logits.numpy()[:, 10:]
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


def test_keep_takes_the_last_positions(engine: Engine, kit: ModuleType, prompt) -> None:
    all_logits, _ = kit.step(engine, prompt, np.ones_like(prompt))
    last, _ = kit.step(engine, prompt, np.ones_like(prompt), keep=2)
    np.testing.assert_array_equal(last, all_logits[:, -2:])


def test_encoder_ignores_padding(bert, kit: ModuleType, prompt, tmp_path: Path) -> None:
    state = bert.model.state_dict()
    state["classifier.weight"] = torch.randn(kit.LABELS, 32, generator=torch.manual_seed(0))
    write_unmerged(bert.skeleton, state, (), tmp_path, precision="exact")
    mask = np.ones_like(prompt)
    mask[1, 6:] = 0
    feeds = {"input_ids": prompt, "attention_mask": mask}
    logits = kit.load(tmp_path).run(feeds, ("logits",))["logits"].numpy()
    alone = kit.load(tmp_path).run({n: f[1:2, :6] for n, f in feeds.items()}, ("logits",))
    np.testing.assert_allclose(logits[1:2], alone["logits"].numpy(), atol=TOLERANCE)
    bert.model.load_state_dict(state)
    expected = bert.model(*map(torch.from_numpy, feeds.values())).numpy()
    nn.init.zeros_(bert.model.classifier.weight)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


def test_rotations_of_a_whole_batch(modernbert, kit: ModuleType, prompt, tmp_path: Path) -> None:
    state = modernbert.model.state_dict()
    write_unmerged(modernbert.skeleton, state, (), tmp_path, precision="exact")
    feeds = {"input_ids": prompt, "attention_mask": np.ones_like(prompt)}
    logits = kit.load(tmp_path).run(feeds, ("logits",))["logits"].numpy()
    expected = modernbert.model(*map(torch.from_numpy, feeds.values())).numpy()
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


def test_any_module(scorer, kit: ModuleType, tmp_path: Path) -> None:
    write_unmerged(scorer.skeleton, scorer.model.state_dict(), (), tmp_path, precision="exact")
    x = np.random.default_rng(0).normal(size=(5, 7, 24)).astype(np.float32)
    scores = kit.load(tmp_path).run({"x": x}, ("scores",))["scores"].numpy()
    np.testing.assert_allclose(scores, scorer.model(torch.from_numpy(x)).numpy(), atol=TOLERANCE)


def test_a_linear_with_a_computed_weight_is_no_site(scorer) -> None:
    assert [site.name for site in scorer.sites] == ["first", "second"]


def test_parameters_have_the_names_of_the_checkpoint(llama) -> None:
    names = skeletons.parameters(llama.skeleton.model())
    assert names["model.embed_tokens.weight"] == ("model.embed_tokens.weight", "lm_head.weight")
    assert {alias for aliases in names.values() for alias in aliases} == set(
        llama.model.state_dict()
    )


def test_skeleton_holds_no_weight(llama) -> None:
    model = onnx.load(llama.skeleton.path)
    onnx.checker.check_model(model)
    assert max(np.prod(tensor.dims, initial=1) for tensor in model.graph.initializer) < 16


def test_attention_is_one_node_per_layer(llama, kit: ModuleType) -> None:
    nodes = list(llama.skeleton.model().graph)
    attention = [node for node in nodes if node.op_type == "Attention"]
    assert [len(node.outputs) for node in attention] == [3] * kit.LAYERS
    assert [str(node.inputs[4].name) for node in attention] == [
        f"past.{layer}.key" for layer in range(kit.LAYERS)
    ]
    counts = Counter(node.op_type for node in nodes)
    assert (counts["Transpose"], counts["Cos"], counts["RotaryEmbedding"]) == (0, 1, 10)


class Stack(nn.Module):
    """Five blocks that are alike, between two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(4, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.start(x)
        for block in self.blocks:
            x = x + torch.nn.functional.silu(block(x))
        return self.end(x)


def stack_form(module: nn.Module) -> Form:
    ports = Port("x", ("batch", 4)), Port("y", ("batch", 3))
    return Form(module, (torch.zeros(2, 4),), ports[:1], ports[1:])


def test_copied_layers_are_the_captured_ones() -> None:
    stack = Stack()
    form = stack_form(stack)
    repeated = Repeated("blocks", 5, stack_form(shortened(stack, "blocks")))
    copied = skeletons.build(replace(form, repeated=repeated))
    captured = skeletons.build(form)
    assert [node.name for node in copied.graph if node.op_type == "Linear"] == [
        node.name for node in captured.graph if node.op_type == "Linear"
    ]
    assert operations(copied) == operations(captured)


def operations(model: ir.Model) -> Counter[tuple[str, tuple[str, ...]]]:
    """Every node's operator with the named inputs that it reads."""
    inputs = {value.name for value in model.graph.inputs}
    return Counter(
        (node.op_type, tuple(str(v.name) for v in node.inputs if v and v.name in inputs))
        for node in model.graph
    )


def test_layers_that_differ_are_not_copied(llama) -> None:
    short = shortened(llama.model, "model.layers")
    layers = nn.ModuleList([*short.model.layers, nn.Linear(2, 2)])
    with pytest.raises(Declined, match="layer 3 differs from layer 1 in"):
        check_alike(layers)


def test_cache_captures_once(scorer, kit: ModuleType, tmp_path: Path) -> None:
    def never() -> Form:
        raise AssertionError("captured again")

    first = skeletons.cached(lambda: kit.scorer_form(scorer.model), {"name": "scorer"}, tmp_path)
    again = skeletons.cached(never, {"name": "scorer"}, tmp_path)
    assert again.path.read_bytes() == first.path.read_bytes() == scorer.skeleton.path.read_bytes()
    with pytest.raises(AssertionError):
        skeletons.cached(never, {"name": "another"}, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".onnx"]


def test_a_size_that_the_module_fixes_is_refused() -> None:
    class First(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:1] * 2

    ports = Port("x", ("batch", 4)), Port("y", ("batch", 4))
    form = Form(First(), (torch.zeros(6, 4),), ports[:1], ports[1:])
    with pytest.raises(ParetuneError, match="'y' was captured as \\[1, 4\\], not \\['batch', 4\\]"):
        skeletons.build(form)


def test_a_module_that_looks_at_its_input_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    ports = Port("x", ("batch", 4)), Port("y", ("batch", 4))
    with pytest.raises(ParetuneError, match="Branching cannot be exported"):
        skeletons.build(Form(Branching(), (torch.ones(6, 4),), ports[:1], ports[1:]))


def test_metadata_names_tied_weights(llama) -> None:
    stored = json.loads(llama.skeleton.model().metadata_props[skeletons.ALIASES])
    assert sum("lm_head.weight" in names for names in stored.values()) == 1
