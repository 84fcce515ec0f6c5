"""Shapes from config.json: parameter counts, targets, digests."""

from dataclasses import asdict

import pytest

from planner import catalog
from planner.architecture import architecture, shape
from planner.errors import UsageError

TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("name", catalog.names("models"))
def test_parameter_count_equals_the_published_one(name: str) -> None:
    published = catalog.entry("models", name)["published_parameters"]
    assert catalog.model(name).architecture.parameters == published


def test_tiny_llama_by_hand() -> None:
    found = architecture(TINY)
    # head_dim 2: q 8x8, k and v 4x8, o 8x8, three MLP matrices 16x8; two norms a block, one last.
    block = 64 + 32 + 32 + 64 + 3 * 128
    assert found.linear_parameters == 2 * block
    assert found.parameters == 32 * 8 + 2 * (block + 16) + 8
    assert [t.role for t in found.targets[:7]] == [
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.output",
        "mlp.gate",
        "mlp.up",
        "mlp.down",
    ]


def test_untied_head_is_a_target_of_its_own_role() -> None:
    found = architecture(TINY | {"tie_word_embeddings": False})
    assert found.targets[-1].role == "head"
    assert found.parameters == architecture(TINY).parameters + 32 * 8


def test_digest_ignores_what_does_not_fix_the_shapes() -> None:
    written_by_another_version = TINY | {
        "head_dim": 2,
        "rope_parameters": {"rope_theta": 1e5},
        "max_position_embeddings": 8192,
        "transformers_version": "5.23.0",
        "dtype": "float32",
    }
    assert catalog.config_digest(written_by_another_version) == catalog.config_digest(TINY)


@pytest.mark.parametrize("field", ["hidden_size", "num_key_value_heads", "vocab_size"])
def test_digest_changes_with_every_shape_field(field: str) -> None:
    changed = TINY | {field: TINY[field] * 2}  # type: ignore[operator]
    assert catalog.config_digest(changed) != catalog.config_digest(TINY)
    assert {k for k, v in shape(changed).items() if v != shape(TINY)[k]} >= {field}


def test_digest_counts_learned_positions() -> None:
    bert = catalog.model("bert-base").config
    longer = {**bert, "max_position_embeddings": 1024}
    assert catalog.config_digest(longer) != catalog.config_digest(bert)


def test_unknown_family_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown model_type 'mamba'; families are bart, "):
        architecture(TINY | {"model_type": "mamba"})


def test_a_model_of_several_towers_is_refused_with_the_part_that_is_known() -> None:
    """Planning its text in its stead would leave out the weights of the other towers."""
    several = {"model_type": "llava", "text_config": TINY, "vision_config": {}}
    with pytest.raises(UsageError, match="unknown model_type 'llava'") as caught:
        architecture(several)
    assert "its text_config is a 'llama'" in str(caught.value.hint)


@pytest.mark.parametrize("text", [None, [], {}, {"model_type": "mllama_text_model"}])
def test_a_text_config_of_no_known_family_is_no_hint(text: object) -> None:
    with pytest.raises(UsageError, match="unknown model_type 'mllama'") as caught:
        architecture({"model_type": "mllama", "text_config": text})
    assert caught.value.hint == "give a config.json of one of these families"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 6}, "num_attention_heads: 6 do not divide hidden_size 8"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 do not divide 4 heads"),
        ({"num_key_value_heads": 8}, "num_key_value_heads: 8 do not divide 4 heads"),
    ],
)
def test_heads_that_do_not_divide_are_named(fields: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=f"no usable {message}"):
        architecture(TINY | fields)


def test_heads_need_not_divide_where_their_width_is_given() -> None:
    found = architecture(TINY | {"num_attention_heads": 6, "head_dim": 2})
    assert found.targets[0].out_features == 12


@pytest.mark.parametrize(
    ("quantized", "name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4"),
        ({"load_in_4bit": True}, "a method that it does not name"),
        ("fp8", "a method that it does not name"),
    ],
)
def test_a_quantised_checkpoint_is_no_base(quantized: object, name: str) -> None:
    with pytest.raises(UsageError, match=f"already quantised by {name}") as caught:
        architecture(TINY | {"quantization_config": quantized})
    assert "unquantised checkpoint" in str(caught.value.hint)


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_checkpoint_that_says_it_is_not_quantised_is_a_base(nothing: object) -> None:
    assert asdict(architecture(TINY | {"quantization_config": nothing})) == asdict(
        architecture(TINY)
    )


@pytest.mark.parametrize("value", [None, 0, -3, "8", True])
def test_unusable_field_is_named(value: object) -> None:
    with pytest.raises(UsageError, match="no usable hidden_size"):
        architecture(TINY | {"hidden_size": value})


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("smollm2-135m", "f9a5ca27e23a4de348fa8a63a5a9396f2188772d4822cf6021d3f81cd956999c"),
        ("mistral-7b", "b684df23c68cb9e0f4c58a4829ec37fe1a694a3200dce97de8caa36370f1a504"),
        ("qwen2.5-0.5b", "02c57f0ca5a452c7205c66dfd8d5dfee1d16760ee8dddc42ab61f2beffa218e8"),
        ("qwen3-8b", "17c18fc9811325797c90e30ccd832433ef297ebed4d8023e298e47dd76091c2d"),
        ("gpt2", "1c89c82f823cae7f3122c157dc9ab03fc56a7c3bce5c521acd2d13bf7f9ca85a"),
        ("bert-base", "428457484bc9b21643ebf41788801df40165ebde9d9dc19b6571faafac6900da"),
        ("roberta-base", "57518330ee3174f0bda6a02825c8d9294366b193862aaf065eee9138639aae0d"),
    ],
)
def test_digests_in_plans_already_made_stand(name: str, digest: str) -> None:
    assert catalog.config_digest(catalog.model(name).config) == digest


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_key_value_heads": "2"}, "num_key_value_heads: '2'"),
        ({"head_dim": 4.0}, "head_dim: 4.0"),
        ({"hidden_size": [8]}, r"hidden_size: \[8\]"),
        ({"hidden_size": None, "n_embd": "8"}, "n_embd: '8'"),
    ],
)
def test_a_size_that_is_no_number_is_refused_as_it_stands(
    fields: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=f"no usable {said}"):
        architecture(TINY | fields)
