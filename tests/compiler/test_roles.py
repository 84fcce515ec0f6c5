"""Roles are read off the dataflow: the same for every family, whatever its modules are called."""

from collections import Counter

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
)

from compiler.base_model import captured, select
from compiler.capture import capture
from compiler.huggingface import CausalLM, MeanPoolClassifier
from compiler.roles import targets
from planner.architecture import architecture
from planner.errors import UsageError
from planner.method import Method, buildable, method

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ADAPTERS = [m for m in buildable().values() if not m.trains_base]
SPLIT = ("attention.query", "attention.key", "attention.value", "attention.output")
CASES = [
    pytest.param(
        LlamaConfig(**SIZES, intermediate_size=128, num_key_value_heads=2),
        {**dict.fromkeys((*SPLIT, "mlp.gate", "mlp.up", "mlp.down"), 2), "head": 1},
        id="gated and grouped (llama)",
    ),
    pytest.param(
        OPTConfig(**SIZES, ffn_dim=128, word_embed_proj_dim=64),
        {**dict.fromkeys((*SPLIT, "mlp.up", "mlp.down"), 2), "head": 1},
        id="plain and tied (opt)",
    ),
    pytest.param(
        GPTNeoXConfig(**SIZES, intermediate_size=128),
        {"attention.qkv": 2, "attention.output": 2, "mlp.up": 2, "mlp.down": 2, "head": 1},
        id="fused projection (gpt-neox)",
    ),
    pytest.param(
        Phi3Config(**SIZES, intermediate_size=128, pad_token_id=0, eos_token_id=1),
        {"attention.qkv": 2, "attention.output": 2, "mlp.gate_up": 2, "mlp.down": 2, "head": 1},
        id="fused projection and gate (phi3)",
    ),
    pytest.param(
        PhiConfig(**SIZES, intermediate_size=128),
        {**dict.fromkeys((*SPLIT, "mlp.up", "mlp.down"), 2), "head": 1},
        id="activation written out (phi)",
    ),
]


@pytest.mark.parametrize(("config", "expected"), CASES)
def test_roles_of_decoders(config: PretrainedConfig, expected: dict[str, int]) -> None:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    found = targets(captured(CausalLM(model), "causal_lm", 32))
    assert Counter(target.role for target in found) == expected
    # A tied head is a linear of the graph and not one of the model's own.
    assert set(architecture(config.to_dict()).targets) <= set(found)


def test_roles_of_an_encoder_with_a_classifier() -> None:
    config = BertConfig(**SIZES, intermediate_size=128)
    model = MeanPoolClassifier(AutoModel.from_config(config, attn_implementation="sdpa"), 64, 3)
    found = targets(captured(model, "sequence_classification", 32))
    layer = dict.fromkeys((*SPLIT, "mlp.up", "mlp.down"), 2)
    assert Counter(target.role for target in found) == {**layer, "classifier": 1}
    assert found[-1].name == "classifier"


class Shared(torch.nn.Module):
    """A plain module that uses one linear twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.last = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(self.first(x))))


def test_a_linear_used_twice_is_one_target() -> None:
    found = targets(capture(Shared(), (torch.zeros(2, 8),), {"x": (0,)}))
    assert [(t.name, t.role) for t in found] == [("first", "mlp.up"), ("last", "mlp.down")]


@pytest.fixture(scope="module")
def llama_targets():
    config = LlamaConfig(**SIZES, intermediate_size=128, num_key_value_heads=2)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return targets(captured(CausalLM(model), "causal_lm", 32))


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (("all-linear",), 14),
        (("attention.query", "attention.value"), 4),
        (("q_proj",), 2),
        ((r"model\.layers\.1\..*",), 7),
        (("model.layers.0.mlp.down_proj", "q_proj"), 3),
    ],
)
def test_targets_are_named_by_role_module_or_pattern(llama_targets, wanted, count) -> None:
    assert len(select(llama_targets, wanted, method("lora"))) == count


@pytest.mark.parametrize("chosen", ADAPTERS, ids=lambda m: m.name)
def test_a_method_adapts_every_linear_that_is_named(chosen: Method, llama_targets) -> None:
    assert len(select(llama_targets, ("all-linear",), chosen)) == 14


def test_a_target_that_is_not_there_is_named(llama_targets) -> None:
    with pytest.raises(UsageError, match="matches the target 'q_prj'") as caught:
        select(llama_targets, ("q_prj",), method("lora"))
    assert caught.value.hint == "did you mean 'q_proj'?"
