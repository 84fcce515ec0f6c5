"""Each pass on a tiny captured Llama: what it changes, and that the numbers stay."""

import copy

import peft
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, LlamaConfig

from compiler import nf4
from compiler.base_model import Base, captured, select
from compiler.graph import attribute, linears
from compiler.huggingface import CausalLM, MeanPoolClassifier
from compiler.passes.checkpoint_blocks import Recomputed, checkpoint_blocks
from compiler.passes.expose_hidden import expose_hidden
from compiler.passes.insert_adapters import Tensors, insert_adapters
from compiler.passes.quantize_base import quantize_base
from compiler.passes.train_base import train_base
from compiler.roles import targets
from compiler.train import TensorBatch
from compiler.training_graph import start, training_graph
from planner.architecture import architecture
from planner.cost.adapter import adapter_cost, target_set
from planner.method import Method, buildable, method, model_dimensions, target_dimensions
from planner.plan import Candidate

RANK, ALPHA = 4, 8.0
ADAPTERS = [m for m in buildable().values() if not m.trains_base]
# Sums of a few hundred fp32 products of order 1, in another order: some 1e-6.
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def graph(model):
    return captured(CausalLM(model), "causal_lm", 32)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 96, (3, 11), generator=torch.Generator().manual_seed(1))


def random_tensors(graph, chosen: Method, wanted: tuple[str, ...] = ("all-linear",)) -> Tensors:
    adapted = select(targets(graph), wanted, chosen)
    generator = torch.Generator().manual_seed(2)
    limits = model_dimensions(adapted)
    values = {
        f"{target.name}.{spec.name}": torch.randn(
            spec.resolve(target_dimensions(target, RANK) | limits), generator=generator
        )
        * 0.1
        for target in adapted
        for spec in chosen.tensors_for(target.role)
    }
    values |= {
        spec.name: torch.randn(spec.resolve({"rank": RANK} | limits), generator=generator) * 0.1
        for spec in chosen.model_tensors()
    }
    scaling = chosen.scaling(RANK, ALPHA) if chosen.scaling else 1.0
    return Tensors(chosen, adapted, values, {t.name: scaling for t in adapted})


def attention_nodes(graph):
    wanted = torch.ops.aten.scaled_dot_product_attention.default
    return [node for node in graph.module.graph.nodes if node.target is wanted]


def test_capture_computes_what_the_model_computes(model, graph, ids) -> None:
    assert torch.equal(graph.module(ids), model(ids).logits)


def test_causal_masks_give_way_to_the_flag(graph) -> None:
    assert [node.args[3:] for node in attention_nodes(graph)] == [(None, 0.0, True)] * 3


def test_a_padding_mask_is_left_alone() -> None:
    config = BertConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    encoder = AutoModel.from_config(config, attn_implementation="sdpa")
    found = captured(MeanPoolClassifier(encoder, 64, 3), "sequence_classification", 32)
    (node,) = attention_nodes(found)
    assert isinstance(node.args[3], torch.fx.Node)


@pytest.mark.parametrize("chosen", ADAPTERS, ids=lambda m: m.name)
def test_every_method_trains_all_its_tensors_and_counts_them(chosen, model, graph, ids) -> None:
    tensors = random_tensors(graph, chosen)
    adapted = insert_adapters(graph.copied(), tensors, fold_frozen=True)
    adapted.graph.module(ids).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapted.trainable.values())
    count = sum(p.numel() for p in adapted.trainable.values())
    shape = architecture(model.config.to_dict())
    cost = adapter_cost(chosen, RANK, target_set(tensors.targets), shape)
    assert count == cost.trainable_parameters


@pytest.mark.parametrize("chosen", ADAPTERS, ids=lambda m: m.name)
def test_folding_frozen_pairs_changes_nothing(chosen, graph, ids) -> None:
    tensors = random_tensors(graph, chosen)
    plain, folded = (
        insert_adapters(graph.copied(), tensors, fold_frozen=fold).graph.module(ids)
        for fold in (False, True)
    )
    torch.testing.assert_close(plain, folded, **CLOSE)
    assert (plain - graph.module(ids)).abs().max() > 1e-3


PAIRS = {"r": RANK, "lora_alpha": ALPHA}
PEFT_CONFIGS = [
    pytest.param("lora", peft.LoraConfig(**PAIRS, target_modules="all-linear"), id="lora"),
    pytest.param(
        "rslora",
        peft.LoraConfig(**PAIRS, use_rslora=True, target_modules="all-linear"),
        id="rslora",
    ),
    pytest.param(
        "dora", peft.LoraConfig(**PAIRS, use_dora=True, target_modules="all-linear"), id="dora"
    ),
    pytest.param(
        "ia3",
        peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        id="ia3 where it is meant for",
    ),
    pytest.param(
        "ia3",
        peft.IA3Config(target_modules="all-linear", feedforward_modules=["down_proj"]),
        id="ia3 everywhere",
    ),
]


@pytest.mark.parametrize(("name", "config"), PEFT_CONFIGS)
def test_logits_and_gradients_are_those_of_peft(name, config, model, graph, ids) -> None:
    named = config.target_modules
    wanted = (named,) if isinstance(named, str) else tuple(named)
    tensors = random_tensors(graph, method(name), wanted)
    adapted = insert_adapters(graph.copied(), tensors, fold_frozen=True)
    loss = adapted.graph.module(ids).square().mean()
    loss.backward()
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    parameters = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    matched = {ours: _theirs(parameters, ours) for ours in adapted.trainable}
    assert len(matched) == len(parameters)
    with torch.no_grad():
        for ours, parameter in matched.items():
            parameter.copy_(tensors.values[ours].view_as(parameter))
    expected = theirs(input_ids=ids).logits.square().mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, **CLOSE)
    for ours, parameter in matched.items():
        gradient = adapted.trainable[ours].grad.view_as(parameter)
        torch.testing.assert_close(gradient, parameter.grad, **CLOSE)


def _theirs(parameters, ours: str):
    site, _, tensor = ours.rpartition(".")
    (found,) = [p for n, p in parameters.items() if f"{site}.{tensor}" in n]
    return found


@pytest.mark.parametrize("chosen", ADAPTERS, ids=lambda m: m.name)
def test_a_quantized_base_is_its_dequantized_one(chosen, model, graph, ids) -> None:
    tensors = random_tensors(graph, chosen)
    quantized = {
        line.weight: nf4.quantize(attribute(graph.module, line.weight))
        for line in linears(graph)
        if line.name != "lm_head"
    }
    adapted = insert_adapters(graph.copied(), tensors, fold_frozen=False)
    found = quantize_base(adapted.graph, quantized, torch.float32)
    output = found.module(ids)
    output.square().mean().backward()
    gradients = {key: p.grad for key, p in adapted.trainable.items()}
    saved = {name: attribute(graph.module, name).clone() for name in quantized}
    try:
        for name, weight in quantized.items():
            attribute(graph.module, name).data.copy_(nf4.dequantize(weight))
        dense = insert_adapters(graph.copied(), tensors, fold_frozen=False)
        expected = dense.graph.module(ids)
        expected.square().mean().backward()
    finally:
        for name, weight in saved.items():
            attribute(graph.module, name).data.copy_(weight)
    torch.testing.assert_close(output, expected, **CLOSE)
    for key, parameter in dense.trainable.items():
        torch.testing.assert_close(gradients[key], parameter.grad, **CLOSE)


def test_the_head_is_left_to_the_loss(graph, ids) -> None:
    headless = expose_hidden(graph.copied())
    assert headless.weight == "lm_head.weight"
    logits = headless.graph.module(ids) @ attribute(graph.module, headless.weight).T
    torch.testing.assert_close(logits, graph.module(ids), **CLOSE)


def test_checkpointed_blocks_compute_the_same_gradients(graph, ids) -> None:
    tensors = random_tensors(graph, method("lora"))
    found = []
    for split in (False, True):
        adapted = insert_adapters(graph.copied(), tensors, fold_frozen=True)
        current = checkpoint_blocks(adapted.graph) if split else adapted.graph
        blocks = [m for m in current.module.modules() if isinstance(m, Recomputed)]
        assert len(blocks) == (3 if split else 0)  # one for each layer
        current.module(ids).square().mean().backward()
        found.append({key: p.grad for key, p in adapted.trainable.items()})
    for key, gradient in found[0].items():
        assert torch.equal(gradient, found[1][key])


def test_full_fine_tuning_trains_every_parameter(model, graph, ids) -> None:
    headless = expose_hidden(graph.copied())
    head = attribute(graph.module, "lm_head.weight")
    trained = train_base(headless.graph, head, "lm_head.weight")
    assert sorted(trained) == sorted(dict(model.named_parameters()))
    hidden = headless.graph.module(ids)
    (hidden @ trained["lm_head.weight"].T).square().mean().backward()
    assert all(p.grad is not None for p in trained.values())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", ["none", "block"])
def test_a_step_lowers_the_loss(compute, checkpointing, model, ids, tmp_path) -> None:
    base_graph = captured(CausalLM(model), "causal_lm", 32)
    base = Base("causal_lm", "fp32", base_graph, targets(base_graph), {})
    candidate = Candidate(
        method="lora",
        rank=RANK,
        alpha=ALPHA,
        targets=("all-linear",),
        format="fp32",
        compute=compute,
        checkpointing=checkpointing,
        batch_size=3,
        sequence_length=16,
        learning_rate=1e-2,
    )
    begin = start(base, candidate, None, seed=0)
    current = base_graph
    if compute == "bf16":
        current = captured(CausalLM(copy.deepcopy(model).to(torch.bfloat16)), "causal_lm", 32)
    training = training_graph(base, current, candidate, begin, torch.device("cpu"))
    batch = TensorBatch(ids, ids, torch.ones_like(ids))
    optimizer = torch.optim.SGD(training.parameters.values(), lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss, count = training.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert count == ids.numel() - len(ids)
    assert losses[2] < losses[1] < losses[0]
