"""Checkpoint folders as they come: whole, sharded, incomplete, or asking for what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from compiler import huggingface
from planner.errors import IncompatibleError, UsageError

LLAMA = LlamaConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=20,
    tie_word_embeddings=True,
)
BERT = BertConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    vocab_size=20,
    num_labels=3,
)
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def saved(model: PreTrainedModel, folder: Path, shard: str = "5GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LLAMA).eval()


@pytest.fixture(scope="module")
def saved_once(original: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(original, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(saved_once: Path, tmp_path: Path) -> Path:
    """A copy of its own for a test that changes it."""
    return Path(shutil.copytree(saved_once, tmp_path / "llama"))


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_training_form_is_the_model_under_its_own_names(
    original: LlamaForCausalLM, saved_once: Path
) -> None:
    form = huggingface.CausalLM(huggingface.load_causal_lm(saved_once))
    torch.testing.assert_close(form(IDS), original(IDS).logits)
    assert list(form.state_dict()) == list(original.state_dict())
    assert not any(parameter.requires_grad for parameter in form.parameters())


def test_bfloat16_checkpoint_is_read_in_float32(original: LlamaForCausalLM, tmp_path: Path) -> None:
    rounded = LlamaForCausalLM(LLAMA).to(torch.bfloat16)
    rounded.load_state_dict(original.state_dict())
    loaded = huggingface.load_causal_lm(saved(rounded, tmp_path))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.lm_head.weight, rounded.lm_head.weight.float())


def test_shards(original: LlamaForCausalLM, tmp_path: Path) -> None:
    folder = saved(original, tmp_path, shard="3KB")
    assert len(huggingface.weight_files(folder)) > 2
    loaded = huggingface.load_causal_lm(folder)
    torch.testing.assert_close(loaded(IDS).logits, original(IDS).logits)


def test_linears_that_lie_the_other_way_round(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    original = GPT2LMHeadModel(config).eval()
    loaded = huggingface.load_causal_lm(saved(original, tmp_path))
    mlp = loaded.get_submodule("transformer.h.0.mlp")
    assert isinstance(mlp.c_fc, torch.nn.Linear)
    assert mlp.c_fc.weight.shape == (64, 16)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(IDS).logits, original(IDS).logits)


def test_missing_shard(original: LlamaForCausalLM, tmp_path: Path) -> None:
    folder = saved(original, tmp_path, shard="3KB")
    lost = huggingface.weight_files(folder)[1]
    lost.unlink()
    with pytest.raises(UsageError, match=f"lacks 1 of .* shards: {lost.name}"):
        huggingface.load_causal_lm(folder)


def test_shard_outside_the_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="names a file outside its folder"):
        huggingface.weight_files(folder)


def test_mean_pooling_counts_real_tokens_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = BertModel(BERT).eval()
    module = huggingface.load_encoder(saved(encoder, tmp_path), labels=7)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert torch.count_nonzero(module(IDS, mask)) == 0, "the base classifier is zero"
    torch.nn.init.eye_(module.classifier.weight)
    hidden = encoder(IDS[1:, :3], mask[1:, :3]).last_hidden_state
    torch.testing.assert_close(module(IDS, mask)[1], hidden.mean(dim=1)[0, :7])
    assert "encoder.layer.0.attention.self.query.weight" in module.state_dict()


def test_a_classification_model_keeps_its_own_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BERT).eval()
    module = huggingface.load_encoder(saved(model, tmp_path), labels=3)
    mask = torch.ones_like(IDS)
    assert torch.count_nonzero(module(IDS, mask)) == 0
    module.classifier.load_state_dict(model.classifier.state_dict())
    torch.testing.assert_close(module(IDS, mask), model(IDS, mask).logits)


def test_digest_names_the_weights_and_the_config(folder: Path, saved_once: Path) -> None:
    digest = huggingface.base_digest(saved_once)
    assert huggingface.base_digest(folder) == digest
    (folder / "README.md").write_text("not part of the model")
    assert huggingface.base_digest(folder) == digest
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    changed = huggingface.base_digest(folder)
    edit_config(folder, rms_norm_eps=1e-3)
    assert len({digest, changed, huggingface.base_digest(folder)}) == 3


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def make_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (drop_tensor, IncompatibleError, "lack 1 tensors of the model: model.norm.weight"),
        (truncate, IncompatibleError, "cannot be read"),
        (make_pickle, UsageError, "pytorch_model.bin, and pickle is never loaded"),
        (lambda f: (f / "model.safetensors").unlink(), UsageError, r"\(none\)"),
        (lambda f: (f / "config.json").unlink(), UsageError, "no config.json in the model folder"),
        (lambda f: (f / "config.json").write_text("{"), UsageError, "is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), UsageError, "holds a list"),
        (
            lambda f: edit_config(f, auto_map={"AutoModel": "x.Y"}),
            IncompatibleError,
            "never run",
        ),
        (
            lambda f: edit_config(f, quantization_config={"quant_method": "gptq"}),
            IncompatibleError,
            "already quantised by 'gptq'",
        ),
        (
            lambda f: edit_config(f, model_type="nonesuch"),
            IncompatibleError,
            "cannot load the 'nonesuch' model",
        ),
        (
            lambda f: edit_config(f, hidden_size=32),
            IncompatibleError,
            "of another shape than the config",
        ),
    ],
)
def test_refused(
    folder: Path, damage: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=message):
        huggingface.load_causal_lm(folder)
