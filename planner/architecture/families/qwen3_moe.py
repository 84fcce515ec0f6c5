"""Qwen3 with experts (Yang et al., 2025): Qwen3's attention; some layers may keep a dense MLP."""

from collections.abc import Iterable, Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.families import llama, mixtral, qwen2, qwen3
from planner.architecture.modules import Module, Norm, below

OPTIONS: dict[str, bool | int | str] = {
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": "",
}


def resolve(size: Dimensions) -> Dimensions:
    return size._replace(
        intermediate=0 if all(sparse_layers(size)) else size.intermediate,
        experts=size.number("num_experts"),
        experts_per_token=size.number("num_experts_per_tok"),
        expert_intermediate=size.number("moe_intermediate_size"),
    )


def sparse_layers(size: Dimensions) -> list[bool]:
    """For each layer whether its MLP is experts."""
    step, dense = size.number("decoder_sparse_step"), size.text("mlp_only_layers").split("|")
    has_experts = size.number("num_experts") > 0 and step > 0
    return [
        has_experts and str(layer) not in dense and (layer + 1) % step == 0
        for layer in range(size.layers)
    ]


def layers(size: Dimensions, sparse: Iterable[Module], dense: Iterable[Module]) -> Iterator[Module]:
    """The blocks, each with experts or with a dense MLP."""
    with_experts, without = tuple(sparse), tuple(dense)
    for number, is_sparse in enumerate(sparse_layers(size)):
        yield from below(f"model.layers.{number}", with_experts if is_sparse else without)


def block(size: Dimensions, mlp: Iterable[Module]) -> Iterator[Module]:
    yield Norm("input_layernorm", size.hidden, bias=False)
    yield from qwen3.attention(size)
    yield Norm("post_attention_layernorm", size.hidden, bias=False)
    yield from mlp


def modules(size: Dimensions) -> Iterator[Module]:
    dense = llama.gated_mlp("mlp", size.hidden, size.number("intermediate_size"))
    blocks = layers(size, block(size, mixtral.experts(size)), block(size, dense))
    return llama.model(size, blocks)


FAMILY = qwen3.FAMILY._replace(
    modules=modules,
    resolve=resolve,
    aliases=mixtral.FAMILY.aliases,
    options=OPTIONS,
    sliding_layers=qwen2.sliding_layers,
    unbuilt="its routed experts have no ONNX form",
)
