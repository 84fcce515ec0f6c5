"""Tiny models with their skeletons, each captured once, and ways to run what is exported."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertModel,
)

from compiler.adapter import Adapter, uniform
from compiler.bank import AdapterBank
from compiler.engine import Engine, library_path
from compiler.export.form import Form, Port
from compiler.export.inference_forms import causal_form, encoder_form
from compiler.export.skeleton import Skeleton, linears, write
from compiler.huggingface import MeanPoolClassifier
from compiler.lower import lower
from compiler.row import Site
from planner.method import Target, method, target_dimensions

Array = npt.NDArray[np.generic]

ROLES = {"k_proj": "attention.key", "v_proj": "attention.value", "down_proj": "mlp.down"}
"""Of the linears that IA3 adapts."""

VOCABULARY, LAYERS, KV_HEADS, HEAD_DIM, LABELS = 96, 5, 2, 16, 6
"""Five layers: three are captured and two are copies."""


@dataclass(frozen=True)
class Captured:
    """A model, its skeleton and its adaptable linears."""

    model: nn.Module
    form: Form
    skeleton: Skeleton
    sites: tuple[Target, ...]


def randomized(model: nn.Module) -> nn.Module:
    """Weights large enough that every part of the model shows in its output."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        mean = 1.0 if name.endswith("norm.weight") or "LayerNorm.weight" in name else 0.0
        nn.init.normal_(parameter, mean, 0.2)
    return model.eval().requires_grad_(requires_grad=False)


def capture(model: nn.Module, form: Form, path: Path, unadapted: str) -> Captured:
    skeleton = write(form, path)
    sites = tuple(
        Target(
            name, ROLES.get(name.rpartition(".")[2], "linear"), line.out_features, line.in_features
        )
        for line in linears(skeleton.model())
        if (name := str(line.node.name)) != unadapted
    )
    return Captured(model, form, skeleton, sites)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    """Grouped-query attention and tied embeddings."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=KV_HEADS,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    model = randomized(LlamaForCausalLM(config))
    path = tmp_path_factory.mktemp("llama") / "skeleton.onnx"
    return capture(model, causal_form(model), path, "lm_head")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    config = BertConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=40,
        attn_implementation="sdpa",
    )
    model = randomized(MeanPoolClassifier(BertModel(config), 32, LABELS))
    for part in model.classifier.parameters():
        nn.init.zeros_(part)
    return capture(model, encoder_form(model), tmp_path_factory.mktemp("bert") / "s.onnx", "")


@pytest.fixture(scope="session")
def modernbert(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    """An encoder with rotary positions, of which one layer in three sees everything."""
    config = ModernBertConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        pad_token_id=0,
        local_attention=4,
        attn_implementation="sdpa",
    )
    model = randomized(MeanPoolClassifier(ModernBertModel(config), 32, LABELS))
    path = tmp_path_factory.mktemp("modernbert") / "s.onnx"
    return capture(model, encoder_form(model), path, "")


class Scorer(nn.Module):
    """A model of nobody's library: two linears, buffers, and a linear whose weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 40)
        self.second = nn.Linear(40, 8, bias=False)
        self.register_buffer("shift", torch.zeros(24))
        self.register_buffer("order", torch.arange(24).flip(0))
        self.mixer = nn.Parameter(torch.zeros(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.gelu(self.first(x.index_select(2, self.order) + self.shift))
        return torch.nn.functional.linear(self.second(hidden), self.mixer @ self.mixer)


def scorer_form(model: nn.Module) -> Form:
    ports = Port("x", ("batch", "items", 24)), Port("scores", ("batch", "items", 8))
    return Form(model, (torch.zeros(2, 3, 24),), ports[:1], ports[1:])


@pytest.fixture(scope="session")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    model = randomized(Scorer())
    model.shift.copy_(torch.linspace(-1, 1, 24))
    return capture(model, scorer_form(model), tmp_path_factory.mktemp("mlp") / "s.onnx", "")


def load(folder: Path) -> Engine:
    return Engine(folder / "model.onnx", library=library_path(), threads=1)


def bank_of(captured: Captured, tenants: Mapping[str, Adapter]) -> AdapterBank:
    """The tenants in slots 1, 2, … on the model's own weights."""
    state = {name: tensor.numpy() for name, tensor in captured.model.state_dict().items()}
    bank = AdapterBank([Site(s.name, s.out_features, s.in_features) for s in captured.sites])
    for name, adapter in tenants.items():
        weight, bias = (lambda n: state[f"{n}.weight"]), (lambda n: state.get(f"{n}.bias"))
        bank.add(name, lower(adapter, weight, bias))
    return bank


def random_adapter(
    kind: str,
    captured: Captured,
    *,
    rank: int | None,
    seed: int,
    labels: tuple[str, ...] | None = None,
    width: int = 0,
) -> Adapter:
    """An adapter on every site but a classifier, whose tensors are far from their start."""
    generator = np.random.default_rng(seed)
    recipe = method(kind)
    targets = tuple(
        site
        for site in captured.sites
        if site.name != "classifier" and recipe.tensors_for(site.role)
    )
    tensors = {
        f"{target.name}.{spec.name}": generator.normal(
            size=spec.resolve(target_dimensions(target, rank)), scale=0.2
        ).astype(np.float32)
        for target in targets
        for spec in recipe.tensors_for(target.role)
    }
    if labels is not None:
        tensors["classifier.weight"] = generator.normal(size=(len(labels), width)).astype("f4")
        tensors["classifier.bias"] = generator.normal(size=len(labels)).astype("f4")
    return uniform(
        method=kind,
        rank=rank,
        alpha=None if rank is None else 2.0 * rank,
        targets=targets,
        tensors=tensors,
        base_digest="b" * 64,
        labels=labels,
    )


def empty_cache(batch: int, layers: int = LAYERS) -> dict[str, Array]:
    nothing = np.zeros((batch, KV_HEADS, 0, HEAD_DIM), np.float32)
    names = [f"past.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return dict.fromkeys(names, nothing)


def step(
    engine: Engine,
    ids: Array,
    mask: Array,
    *,
    keep: int | None = None,
    cache: Mapping[str, Array] | None = None,
    bank: AdapterBank | None = None,
    tenants: Sequence[str] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Logits and the next cache of one forward pass of the causal model."""
    length = ids.shape[1]
    feeds: dict[str, Array] = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -length:],
        "keep": np.array([length if keep is None else keep]),
        **(empty_cache(len(ids)) if cache is None else cache),
    }
    if bank is not None:
        slots = [
            0 if name == "base" else bank.slot(name) for name in tenants or ["base"] * len(ids)
        ]
        feeds |= {"bank": bank.array, "slot": np.array(slots)}
    found = {name: value.numpy() for name, value in engine.run(feeds, engine.outputs).items()}
    logits = found.pop("logits")
    return logits, {name.replace("present", "past"): value for name, value in found.items()}


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """This module: fixtures cannot be imported where tests are no package."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def prompt() -> Array:
    """Token ids [3, 11]."""
    return np.random.default_rng(1).integers(0, VOCABULARY, (3, 11))
