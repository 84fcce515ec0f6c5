"""PEFT itself is the oracle: what it saves we load, what we write it loads, with equal logits.

The base is a tiny Llama with biases in its attention (hidden 64, 2 layers, 4 heads of which 2 keep
keys and values, vocabulary 96), or a tiny BERT classifier; every tensor of an adapter is random, so
that none is a no-op.
"""

import copy
import json
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from compiler.adapter import target_tensors, uniform
from compiler.commands.import_adapter import drawn
from compiler.lower import lower
from compiler.peft import read
from compiler.peft_write import write
from planner import update
from planner.method import (
    ALL_LINEAR,
    Site,
    Target,
    buildable,
    method,
    model_dimensions,
    target_dimensions,
)

# PEFT reads an attribute of transformers that is deprecated; neither is ours to change.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

DIGEST = "d" * 64
LABELS_MAX = 5
LLAMA_ROLES = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "o_proj": "attention.output",
    "gate_proj": "mlp.gate",
    "up_proj": "mlp.up",
    "down_proj": "mlp.down",
    "lm_head": "head",
}
BERT_ROLES = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "classifier": "classifier",
}
SOME = ["q_proj", "v_proj", "down_proj"]

# Logits here are below 1; float32 rounding over two layers of width 64 stays under 1e-6, and a
# wrong scale, side or tensor shows from 1e-3 up.
TOLERANCE = 1e-5

TOKENS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(7))


def randomised(module, seed, names=""):
    """The module with those of its parameters random; magnitudes and scales stay near their 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        if any(part in name for part in names or [""]):
            noise = torch.randn(parameter.shape, generator=generator)
            near = parameter.data if "magnitude" in name else 0.0
            parameter.data = near + (0.1 if "vera_lambda_b" not in name else 0.5) * noise
    return module.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they save on matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def llama():
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        attention_bias=True,
        attn_implementation="eager",
    )
    return randomised(LlamaForCausalLM(config), 1)


@pytest.fixture(scope="module")
def bert():
    """A classifier of five labels, all its own, as the artifact's base keeps room for."""
    config = BertConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=96,
        num_labels=LABELS_MAX,
        attn_implementation="eager",
    )
    return randomised(BertForSequenceClassification(config), 2)


def sites_of(model, roles):
    return tuple(
        Target(name, roles[name.rpartition(".")[2]], module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in roles
    )


def llama_sites(model):
    return sites_of(model, LLAMA_ROLES)


def adapted_linear(adapter, target, module, inputs, _):
    """The planner's update on the frozen weight, in torch."""
    weight, bias = module.weight, module.bias
    tensors = {k: torch.from_numpy(t) for k, t in target_tensors(adapter, target).items()}
    site = Site(target, weight, bias, adapter.scalings[target.name])
    parts = method(adapter.method).update(tensors, site)
    y = update.apply(parts, inputs[0], partial(linear, weight=weight), linear)
    return y if bias is None else y + bias


def lowered_linear(parts, module, inputs, _):
    """The bank's formula, part by part."""
    t = {
        name: torch.from_numpy(np.ascontiguousarray(value))
        for name, value in vars(parts).items()
        if isinstance(value, np.ndarray)
    }
    x = inputs[0]
    y = linear(x * t.get("input_scale", 1), module.weight) * t.get("output_scale", 1)
    if "a" in t:
        latent = linear(x, t["a"]) * t.get("latent_scale", 1)
        y = y + linear(latent, t["b"]) * t.get("pair_scale", 1)
    return y + t.get("output_shift", 0) + (0 if module.bias is None else module.bias)


@contextmanager
def hooked(model, hooks):
    handles = [model.get_submodule(n).register_forward_hook(hook) for n, hook in hooks.items()]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS).logits


def logits_with(model, adapter):
    """By the update itself and by its lowered form, which must agree."""
    direct = {t.name: partial(adapted_linear, adapter, t) for t in adapter.targets}
    parts = lower(
        adapter,
        lambda name: model.get_submodule(name).weight.numpy(),
        lambda name: (
            None
            if model.get_submodule(name).bias is None
            else model.get_submodule(name).bias.numpy()
        ),
    )
    with hooked(model, {name: partial(lowered_linear, each) for name, each in parts.items()}):
        lowered = logits(model)
    if not any(name.endswith(".weight") for name in adapter.tensors):
        with hooked(model, direct):
            assert (logits(model) - lowered).abs().max() <= TOLERANCE
    return lowered


def assert_close(found, expected, base):
    assert (expected - base).abs().max() > 100 * TOLERANCE  # the adapter does something
    assert (found - expected).abs().max() <= TOLERANCE


LORA = partial(peft.LoraConfig, r=4, lora_alpha=6)
PATTERNS = {
    "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
    "alpha_pattern": {"down_proj": 3, "model.layers.0.self_attn.q_proj": 9},
}
CASES = {
    "lora": partial(LORA, target_modules=SOME),
    "all linear": partial(LORA, target_modules="all-linear"),
    "a pattern": partial(LORA, target_modules=r".*\.1\..*(k|up)_proj"),
    "one layer": partial(LORA, target_modules=SOME, layers_to_transform=[1]),
    "one named layer": partial(
        LORA, target_modules=SOME, layers_to_transform=0, layers_pattern="layers"
    ),
    "excluded": partial(LORA, target_modules=SOME, exclude_modules=["layers.0.self_attn.q_proj"]),
    "excluded by pattern": partial(LORA, target_modules=SOME, exclude_modules=r".*down.*"),
    "ranks and alphas": partial(LORA, target_modules=SOME, **PATTERNS),
    "dropout": partial(LORA, target_modules=SOME, lora_dropout=0.1),
    "gaussian": partial(LORA, target_modules=SOME, init_lora_weights="gaussian"),
    "rslora": partial(LORA, target_modules=SOME, use_rslora=True),
    "rslora ranks": partial(LORA, target_modules=SOME, use_rslora=True, **PATTERNS),
    "dora": partial(LORA, target_modules=SOME, use_dora=True),
    "dora ranks": partial(LORA, target_modules="all-linear", use_dora=True, **PATTERNS),
    "dora and rslora": partial(LORA, target_modules=SOME, use_dora=True, use_rslora=True),
    "vera": partial(peft.VeraConfig, r=16, target_modules=SOME, projection_prng_key=3),
    "vera all": partial(peft.VeraConfig, r=16, target_modules="all-linear"),
    "vera by seed": partial(
        peft.VeraConfig, r=16, target_modules=SOME, projection_prng_key=5, save_projection=False
    ),
    "ia3": partial(
        peft.IA3Config,
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "ia3 elsewhere": partial(
        peft.IA3Config,
        target_modules=["q_proj", "o_proj", "up_proj", "down_proj"],
        feedforward_modules=r".*(o_proj|up_proj)",
    ),
}
METHOD_OF = {"rslora": "rslora", "dora": "dora", "vera": "vera", "ia3": "ia3"}


def saved_by_peft(model, config, folder):
    """What PEFT saves of a random adapter, and the logits it computes with it."""
    wrapped = peft.get_peft_model(copy.deepcopy(model), config())
    randomised(wrapped, 3, ["lora_", "vera_lambda", "ia3_l"])
    expected = logits(wrapped)
    wrapped.save_pretrained(folder)
    return expected


# PEFT warns of what this case is for: projections that only a seed describes.
EVERY_CASE = [
    pytest.param(
        case,
        marks=pytest.mark.filterwarnings("ignore:Specified to not (save|load) vera_A")
        if case == "vera by seed"
        else (),
    )
    for case in CASES
]


@pytest.mark.parametrize("case", EVERY_CASE)
def test_what_peft_saves_gives_its_logits(case, llama, tmp_path):
    expected = saved_by_peft(llama, CASES[case], tmp_path)
    adapter = drawn(read(tmp_path, llama_sites(llama), DIGEST))
    assert adapter.method == METHOD_OF.get(case.split()[0], "lora")
    assert_close(logits_with(llama, adapter), expected, logits(llama))


def loaded_by_peft(model, folder):
    return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder)


@pytest.mark.parametrize("case", EVERY_CASE)
def test_peft_loads_what_it_saved_after_a_pass_through_us(case, llama, tmp_path):
    expected = saved_by_peft(llama, CASES[case], tmp_path / "theirs")
    adapter = drawn(read(tmp_path / "theirs", llama_sites(llama), DIGEST))
    write(adapter, tmp_path / "ours", "tiny")
    assert_close(logits(loaded_by_peft(llama, tmp_path / "ours")), expected, logits(llama))


def random_adapter(name, targets, rank):
    """Every tensor of the method random; some ranks and scalings of their own."""
    record, random = method(name), np.random.default_rng(11)
    chosen = [t for t in targets if t.role in record.targets and t.role in ALL_LINEAR]
    ranks = {t.name: rank + (t.role == "mlp.up" and not record.model_tensors()) for t in chosen}
    widest, tensors = model_dimensions(tuple(chosen)), {}
    for target in chosen:
        dimensions = widest | target_dimensions(target, ranks[target.name])
        for spec in record.tensors_for(target.role):
            tensors[f"{target.name}.{spec.name}"] = random.normal(size=spec.resolve(dimensions))
    for spec in record.model_tensors():
        tensors[spec.name] = random.normal(size=spec.resolve(widest | {"rank": rank}))
    size = 0.5 if record.model_tensors() else 0.1  # VeRA multiplies four tensors, LoRA two
    adapter = uniform(
        method=name,
        rank=rank if record.ranks else None,
        alpha=3.0 if record.scaling else None,
        targets=tuple(chosen),
        tensors={key: (size * value).astype(np.float32) for key, value in tensors.items()},
        base_digest=DIGEST,
        seed=4,
        template="chat",
    )
    scalings = {n: record.scaling(r, 3.0) if record.scaling else 1.0 for n, r in ranks.items()}
    if record.scaling:
        scalings[chosen[0].name] *= 1.5
    return replace(adapter, ranks=ranks if record.ranks else {}, scalings=scalings)


EXPORTED = [name for name, record in buildable().items() if record.peft_config]


@pytest.mark.parametrize("name", EXPORTED)
def test_peft_gives_our_logits_with_what_we_write(name, llama, tmp_path):
    adapter = random_adapter(name, llama_sites(llama), 4)
    write(adapter, tmp_path / "out", "tiny")
    found = logits(loaded_by_peft(llama, tmp_path / "out"))
    assert_close(found, logits_with(llama, adapter), logits(llama))


@pytest.mark.parametrize("name", EXPORTED)
def test_what_we_write_we_read_back(name, llama, tmp_path):
    """The method too, though PEFT has one word for LoRA, LoRA+ and QLoRA; PiSSA becomes LoRA."""
    adapter = random_adapter(name, llama_sites(llama), 4)
    written = write(adapter, tmp_path / "out", "tiny")
    again = read(tmp_path / "out", llama_sites(llama), DIGEST)
    assert again.method == ("lora" if name == "pissa" else name)
    assert (again.targets, again.ranks, again.template) == (
        written.targets,
        written.ranks,
        written.template,
    )
    assert again.scalings == pytest.approx(written.scalings, rel=1e-12)
    assert again.tensors.keys() == written.tensors.keys()
    assert all(np.array_equal(again.tensors[n], t) for n, t in written.tensors.items())


def test_wider_projections_than_peft_allocates_are_written_as_wide_as_it_does(llama, tmp_path):
    adapter = random_adapter("vera", llama_sites(llama), 4)
    wider = {
        "vera_A": np.pad(adapter.tensors["vera_A"], ((0, 0), (0, 5)), constant_values=1),
        "vera_B": np.pad(adapter.tensors["vera_B"], ((0, 5), (0, 0)), constant_values=1),
    }
    write(replace(adapter, tensors={**adapter.tensors, **wider}), tmp_path / "out", "tiny")
    found = logits(loaded_by_peft(llama, tmp_path / "out"))
    assert_close(found, logits_with(llama, adapter), logits(llama))


def test_pissa_is_written_at_twice_its_rank(llama, tmp_path):
    written = write(random_adapter("pissa", llama_sites(llama), 4), tmp_path / "out", "tiny")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"], written.rank) == (8, True, 8)
    assert set(config["rank_pattern"].values()) == {10}


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_pissa_that_peft_converted_gives_its_logits(llama, tmp_path):
    config = LORA(target_modules=SOME, init_lora_weights="pissa")
    wrapped = peft.get_peft_model(copy.deepcopy(llama), config)
    start = tmp_path / "start"
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(start)
    wrapped.peft_config["default"].init_lora_weights = "pissa"
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(len(name))
            )
    expected = logits(wrapped.eval())
    wrapped.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=str(start))
    adapter = read(tmp_path / "out", llama_sites(llama), DIGEST)
    assert adapter.rank == 8
    assert_close(logits_with(llama, adapter), expected, logits(llama))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_read_as_their_values(dtype, llama, tmp_path):
    saved_by_peft(llama, CASES["lora"], tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    rounded = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(rounded, path, metadata={"format": "pt"})
    adapter = read(tmp_path, llama_sites(llama), DIGEST)
    for name, tensor in rounded.items():
        own = name.removeprefix("base_model.model.").removesuffix(".weight")
        assert np.array_equal(adapter.tensors[own], tensor.float().numpy())


@pytest.mark.parametrize("flags", [{}, {"use_dora": True}])
def test_a_base_that_stores_its_weights_transposed_changes_nothing(flags, tmp_path):
    """GPT-2's Conv1D holds [in, out], which PEFT calls fan_in_fan_out; the site's weight is not."""
    model = randomised(torch.nn.ModuleDict({"c_fc": Conv1D(6, 4)}), 5)
    config = LORA(target_modules=["c_fc"], fan_in_fan_out=True, **flags)
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    randomised(wrapped, 3, ["lora_"]).save_pretrained(tmp_path)
    adapter = read(tmp_path, (Target("c_fc", "mlp.up", 6, 4),), DIGEST)
    layer = torch.nn.Linear(4, 6)
    layer.weight.data, layer.bias.data = model["c_fc"].weight.T.contiguous(), model["c_fc"].bias
    parts = lower(adapter, lambda _: layer.weight.detach().numpy(), lambda _: None)["c_fc"]
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(8))
    expected = wrapped.base_model.model["c_fc"](x)
    assert_close(lowered_linear(parts, layer, (x,), None), expected, model["c_fc"](x))


def bert_sites(model):
    return sites_of(model, BERT_ROLES)


def with_empty_head(model):
    """The base of an artifact of classifiers: its head is zero."""
    base = copy.deepcopy(model)
    base.classifier.weight.zero_()
    base.classifier.bias.zero_()
    return base


def with_head_of(model, labels):
    own = copy.deepcopy(model)
    own.classifier = torch.nn.Linear(32, labels)
    own.config.num_labels = own.num_labels = labels
    return own


def test_a_classifier_that_peft_saves_gives_its_logits(bert, tmp_path):
    config = LORA(target_modules=["query", "value"], task_type="SEQ_CLS")
    wrapped = peft.get_peft_model(with_head_of(bert, 3), config)
    randomised(wrapped, 3, ["lora_", "modules_to_save"])
    expected = logits(wrapped)
    wrapped.save_pretrained(tmp_path)
    adapter = read(tmp_path, bert_sites(bert), DIGEST, ("ham", "spam", "phish"))
    found = logits_with(with_empty_head(bert), adapter)
    assert adapter.labels == ("ham", "spam", "phish")
    assert (found[:, :3] - expected).abs().max() <= TOLERANCE
    assert not found[:, 3:].any()


def test_peft_loads_a_classifier_that_we_write(bert, tmp_path):
    random = np.random.default_rng(12)
    adapter = random_adapter("lora", bert_sites(bert), 4)
    head = {
        "classifier.weight": random.normal(size=(2, 32)).astype(np.float32),
        "classifier.bias": random.normal(size=2).astype(np.float32),
    }
    adapter = replace(adapter, tensors={**adapter.tensors, **head}, labels=("ham", "spam"))
    write(adapter, tmp_path / "out", "tiny")
    found = logits(loaded_by_peft(with_head_of(bert, 2), tmp_path / "out"))
    expected = logits_with(with_empty_head(bert), adapter)[:, :2]
    assert (found - expected).abs().max() <= TOLERANCE
    assert read(tmp_path / "out", bert_sites(bert), DIGEST).labels == ("ham", "spam")
