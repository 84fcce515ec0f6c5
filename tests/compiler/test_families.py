"""What the planner counts in a family is what the compiler adapts in the model of transformers."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig

from compiler.base_model import captured, load_module, select
from compiler.frozen_linear import low_rank_linear
from compiler.graph import Graph
from compiler.huggingface import read_config
from compiler.passes.insert_adapters import Tensors, insert_adapters
from compiler.roles import targets
from planner import Spec, frontier, recommend
from planner.architecture import architecture
from planner.architecture.family import FAMILIES, family
from planner.errors import UsageError
from planner.method import ALL_LINEAR, Target, method, target_dimensions

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "hidden_dim": 48,  # as DistilBERT names it
    "n_inner": 48,  # as GPT-2 names it
    "max_position_embeddings": 64,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
TASKS = {"decoder": "causal_lm", "encoder": "sequence_classification"}
FACTORIES = {
    "decoder": transformers.AutoModelForCausalLM,
    "encoder": transformers.AutoModel,
}
LORA, RANK = method("lora"), 2


def declared(*, built: bool) -> list[str]:
    found = {name: family(name) for name in FAMILIES}
    return [
        name
        for name, record in found.items()
        if record.kind in TASKS and not record.image and bool(record.unbuilt) is not built
    ]


def adapted(graph: Graph, chosen: tuple[Target, ...]) -> list[torch.nn.Parameter]:
    """The graph with a pair on every target; the pairs' parameters."""
    values = {
        f"{target.name}.{spec.name}": torch.ones(spec.resolve(target_dimensions(target, RANK)))
        for target in chosen
        for spec in LORA.tensors_for(target.role)
    }
    tensors = Tensors(LORA, chosen, values, {})
    return list(insert_adapters(graph, tensors, fold_frozen=False).trainable.values())


@pytest.mark.parametrize("name", declared(built=True))
def test_every_linear_that_is_counted_is_adapted(name: str, tmp_path: Path) -> None:
    kind, config = family(name).kind, AutoConfig.for_model(name, **SIZES)
    FACTORIES[kind].from_config(config).save_pretrained(tmp_path)
    graph = captured(load_module(tmp_path, TASKS[kind], 3), TASKS[kind], 16)
    chosen = select(targets(graph), ("all-linear",), LORA)
    counted = architecture(read_config(tmp_path)).targets
    assert set(chosen) == {target for target in counted if target.role in ALL_LINEAR}
    parameters = adapted(graph, chosen)
    pairs = [node for node in graph.module.graph.nodes if node.target is low_rank_linear]
    assert len(pairs) == len(chosen)
    graph.module(*(torch.ones(2, 5, dtype=torch.int64) for _ in graph.inputs)).sum().backward()
    assert all(parameter.grad is not None for parameter in parameters)


@pytest.mark.parametrize("name", declared(built=False))
def test_a_family_that_is_not_built_is_refused(name: str) -> None:
    found = family(name)
    config = {"model_type": name, "_name_or_path": name} | SIZES
    spec = Spec(model=config, task=TASKS[found.kind], vram_gib=24)
    for ask in (recommend, frontier):
        with pytest.raises(UsageError, match=f"the family '{name}' yet: {found.unbuilt}") as caught:
            ask(spec)
        assert caught.value.hint == "--include-unbuildable weighs it all the same"
    assert recommend(spec, unbuildable=True).model.family == name
