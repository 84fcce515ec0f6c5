"""Each family against the model that transformers makes of the same config, on the meta device."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from planner import catalog
from planner.architecture import Architecture, architecture, digest
from planner.architecture.family import FAMILIES
from planner.errors import UsageError

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 100, "n_positions": 20}
FALCON = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
NORMED = {"qk_layernorm": True}
PARALLEL = {"use_parallel_residual": True}
MOE = GROUPED | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MIXED = {"decoder_sparse_step": 2, "mlp_only_layers": [1]}
SHARED = {"shared_expert_intermediate_size": 40}
POSITIONS = {"max_position_embeddings": 20}
BERT = SIZES | POSITIONS | {"type_vocab_size": 2}
OPT = SIZES | POSITIONS | {"ffn_dim": 48}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}
T5 = {
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "vocab_size": 100,
}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
}
VIT = {k: v for k, v in SIZES.items() if k != "vocab_size"} | {"image_size": 34, "patch_size": 8}

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "bart": [BART, BART | UNTIED],
    "bert": [BERT],
    "bloom": [{"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 100}],
    "deberta-v2": [
        BERT,
        SIZES
        | POSITIONS
        | RELATIVE
        | {"share_att_key": True, "position_buckets": 16, "conv_kernel_size": 3},
        SIZES | POSITIONS | RELATIVE | {"embedding_size": 16},
    ],
    "distilbert": [
        POSITIONS | {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "vocab_size": 100},
    ],
    "falcon": [
        FALCON,
        FALCON | UNTIED | {"multi_query": False, "parallel_attn": False, "bias": True},
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48},
        FALCON | {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    ],
    "gemma": [GROUPED | {"head_dim": 16}, GROUPED],
    "gemma2": [GROUPED | {"head_dim": 16}, GROUPED | {"attention_bias": True}],
    "gemma3_text": [GROUPED | {"head_dim": 16}],
    "gpt2": [GPT, GPT | UNTIED | {"n_inner": 48}],
    "gpt_neox": [SIZES, SIZES | {"attention_bias": False, "use_parallel_residual": False}],
    "gptj": [GPT | {"rotary_dim": 4}, GPT | TIED | {"n_inner": 48, "rotary_dim": 4}],
    "llama": [
        GROUPED,
        GROUPED | TIED | {"head_dim": 16},
        GROUPED | {"attention_bias": True, "mlp_bias": True},
    ],
    "mistral": [GROUPED, GROUPED | {"head_dim": 16}],
    "mixtral": [GROUPED | {"num_local_experts": 4}, GROUPED | {"num_experts_per_tok": 3}],
    "modernbert": [SIZES, SIZES | {"attention_bias": True, "mlp_bias": True, "norm_bias": True}],
    "mt5": [T5 | TIED, T5 | UNTIED],
    "olmo2": [GROUPED, GROUPED | {"attention_bias": True}],
    "opt": [
        OPT,
        OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
        OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False},
    ],
    "phi": [GROUPED, GROUPED | NORMED, SIZES | TIED],
    "phi3": [GROUPED],
    "qwen2": [GROUPED, GROUPED | TIED],
    "qwen2_moe": [MOE | SHARED, MOE | SHARED | MIXED, MOE | SHARED | {"qkv_bias": False}],
    "qwen3": [GROUPED | {"head_dim": 16}, GROUPED | {"head_dim": 16, "attention_bias": True}],
    "qwen3_moe": [MOE | {"head_dim": 16}, MOE | MIXED | {"head_dim": 16}],
    "roberta": [BERT],
    "stablelm": [GROUPED, GROUPED | NORMED | PARALLEL | {"use_qkv_bias": True}],
    "t5": [T5 | {"num_decoder_layers": None}, T5 | UNTIED | {"feed_forward_proj": "gated-gelu"}],
    "vit": [VIT, VIT | {"qkv_bias": False, "pooler_output_size": 16}],
}
CASES = [
    pytest.param({"model_type": name} | config, id=f"{name}-{number}")
    for name, configs in CONFIGS.items()
    for number, config in enumerate(configs)
]


def meta_model(config: dict[str, Any], kind: str) -> nn.Module:
    factory = {
        "decoder": transformers.AutoModelForCausalLM,
        "encoder": transformers.AutoModel,
        "encoder_decoder": transformers.AutoModelForSeq2SeqLM,
    }[kind]
    with torch.device("meta"):
        model = factory.from_config(transformers.AutoConfig.for_model(**config))
    if config["model_type"] in ("t5", "mt5") and config.get("tie_word_embeddings") is False:
        # transformers ties every new T5; the checkpoints of v1.1 and mT5 hold a head of their own.
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def linears(model: nn.Module) -> dict[str, tuple[int, int, bool]]:
    """Of the modules with a weight of their own, and without the pooler."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and "pooler" not in name:
            out, width = module.weight.shape
            if isinstance(module, Conv1D):
                out, width = width, out
            if id(module.weight) not in embeddings:
                found[name] = (out, width, module.bias is not None)
    return found


def norms(model: nn.Module) -> set[tuple[str, int, bool]]:
    return {
        (name, module.weight.numel(), getattr(module, "bias", None) is not None)
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None
    }


def planned(found: Architecture) -> dict[str, tuple[int, int, bool]]:
    """The targets that transformers keeps as linears: no experts, no router over them."""
    return {
        t.name: (t.out_features, t.in_features, t.name in found.biases)
        for t in found.targets
        if not t.role.startswith("experts.") and not t.name.endswith(".mlp.gate")
    }


def test_every_family_is_held_against_transformers() -> None:
    assert {name.replace("-", "_") for name in CONFIGS} == set(FAMILIES)


@pytest.mark.parametrize("config", CASES)
def test_counts_linears_and_norms_are_those_of_transformers(config: dict[str, Any]) -> None:
    found = architecture(config)
    model = meta_model(config, found.kind)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert planned(found) == linears(model)
    assert {(n.name, n.width, n.bias) for n in found.norms} == norms(model)


@pytest.mark.parametrize("config", CASES)
def test_a_config_that_transformers_saved_reads_the_same(
    config: dict[str, Any], tmp_path: Path
) -> None:
    transformers.AutoConfig.for_model(**config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    if config["model_type"] in ("t5", "mt5"):
        saved["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    assert architecture(saved).targets == architecture(config).targets
    assert architecture(saved).parameters == architecture(config).parameters
    assert digest(saved) == digest(config)


def test_the_text_config_that_transformers_nests_can_be_planned_alone(tmp_path: Path) -> None:
    text = {**GROUPED, "head_dim": 16}
    transformers.AutoConfig.for_model("gemma3", text_config=text).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    with pytest.raises(UsageError, match="unknown model_type 'gemma3'") as caught:
        architecture(saved)
    assert "'gemma3_text'" in str(caught.value.hint)
    alone = architecture(saved["text_config"])
    assert alone.parameters == architecture({"model_type": "gemma3_text", **text}).parameters


def smallest_of_each_family() -> list[str]:
    sizes: dict[str, tuple[int, str]] = {}
    for name in catalog.names("models"):
        found = catalog.model(name).architecture
        known = sizes.get(found.model_type, (found.parameters, name))
        sizes[found.model_type] = min(known, (found.parameters, name))
    return sorted(name for _, name in sizes.values())


@pytest.mark.parametrize("name", smallest_of_each_family())
def test_catalogue_configs_make_the_same_model_in_transformers(name: str) -> None:
    found = catalog.model(name)
    model = meta_model(dict(found.config), found.architecture.kind)
    assert sum(p.numel() for p in model.parameters()) == found.architecture.parameters


def test_one_expert_in_three_is_active() -> None:
    config = {"model_type": "mixtral", **GROUPED, "num_local_experts": 3, "num_experts_per_tok": 1}
    found = architecture(config)
    experts = 3 * 3 * (3 * 48 * 32)
    assert found.active_parameters == found.parameters - experts * 2 // 3
    assert (found.intermediate, found.active_intermediate) == (0, 48)
    assert {t.role for t in found.targets} >= {"router", "experts.gate", "experts.down"}


def test_a_shared_expert_is_always_active() -> None:
    found = architecture({"model_type": "qwen2_moe", **MOE, **SHARED})
    assert found.intermediate == 40
    assert found.active_intermediate == 40 + 2 * 24


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "mistral", "sliding_window": 8}, (8, 3)),
        ({"model_type": "mistral", "sliding_window": None}, (0, 0)),
        ({"model_type": "llama", "sliding_window": 8}, (0, 0)),
        ({"model_type": "gemma2", "sliding_window": 8}, (8, 2)),
        ({"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 3}, (8, 2)),
        ({"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 2}, (0, 0)),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 8,
                "max_window_layers": 2,
                "use_sliding_window": True,
            },
            (8, 1),
        ),
        (
            {
                "model_type": "gemma3_text",
                "sliding_window": 8,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
            (8, 1),
        ),
        ({"model_type": "modernbert", "local_attention": 8}, (8, 2)),
    ],
)
def test_sliding_layers_are_counted(config: dict[str, Any], expected: tuple[int, int]) -> None:
    found = architecture(GROUPED | config)
    assert (found.sliding_window, found.sliding_layers) == expected


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (BERT | {"model_type": "roberta"}, 18),
        (OPT | {"model_type": "opt"}, 20),
        (T5 | {"model_type": "t5", "n_positions": 512}, 0),
        (VIT | {"model_type": "vit"}, 17),
        (GPT | {"model_type": "gptj"}, 20),
    ],
)
def test_longest_input(config: dict[str, Any], positions: int) -> None:
    assert architecture(config).positions == positions


@pytest.mark.parametrize(
    ("config", "traits"),
    [
        (FALCON | {"model_type": "falcon"}, (True, False, False, 1)),
        (SIZES | PARALLEL | {"model_type": "stablelm"}, (True, False, True, 4)),
        (SIZES | NORMED | {"model_type": "phi"}, (True, True, False, 4)),
        (T5 | {"model_type": "mt5"}, (False, False, True, 4)),
    ],
)
def test_traits(config: dict[str, Any], traits: tuple[bool, bool, bool, int]) -> None:
    found = architecture(config)
    assert (found.parallel, found.qk_norm, found.gated, found.kv_heads) == traits


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GROUPED | {"model_type": "mixtral", "num_local_experts": "8"}, "num_local_experts: 8"),
        (GROUPED | {"model_type": "mixtral", "num_local_experts": 10**6}, "num_experts: 1000000"),
        (
            MOE | {"model_type": "qwen3_moe", "num_experts_per_tok": 7},
            "num_experts_per_tok: 7 of 6",
        ),
        (VIT | {"model_type": "vit", "patch_size": 0}, "patch_size: 0"),
        (VIT | {"model_type": "vit", "image_size": [32, 16]}, r"image_size: \[32, 16\]"),
        (GROUPED | {"model_type": "llama", "hidden_act": "snake"}, "hidden_act: 'snake'"),
        (BART | {"model_type": "bart", "encoder_layers": 10**6}, "encoder_layers: 1000000"),
    ],
)
def test_unusable_options_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"config.json has no usable {message}"):
        architecture(config)
