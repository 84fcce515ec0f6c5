"""Mixtral (Jiang et al., 2024): Mistral's attention and, for the MLP, experts of which a router
picks two for each token."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.families import llama
from planner.architecture.modules import Linear, Module, Norm, repeat


def resolve(size: Dimensions) -> Dimensions:
    return size._replace(
        intermediate=0,
        experts=size.number("num_experts"),
        experts_per_token=size.number("num_experts_per_tok"),
        expert_intermediate=size.intermediate,
    )


def experts(size: Dimensions) -> Iterator[Module]:
    """The router and its experts, which transformers keeps in two tensors."""
    hidden, inner = size.hidden, size.expert_intermediate
    yield Linear("mlp.gate", "router", size.experts, hidden)
    for number in range(size.experts):
        name = f"mlp.experts.{number}"
        yield Linear(f"{name}.gate_proj", "experts.gate", inner, hidden)
        yield Linear(f"{name}.up_proj", "experts.up", inner, hidden)
        yield Linear(f"{name}.down_proj", "experts.down", hidden, inner)


def block(size: Dimensions) -> Iterator[Module]:
    yield Norm("input_layernorm", size.hidden, bias=False)
    yield from llama.attention(size, qkv_bias=False, output_bias=False)
    yield Norm("post_attention_layernorm", size.hidden, bias=False)
    yield from experts(size)


def modules(size: Dimensions) -> Iterator[Module]:
    return llama.model(size, repeat("model.layers", size.layers, block(size)))


FAMILY = llama.FAMILY._replace(
    modules=modules,
    resolve=resolve,
    aliases={"num_experts": "num_local_experts"},
    options={"num_experts": 8, "num_experts_per_tok": 2},
    sliding_layers=lambda _, layers: layers,
    unbuilt="its routed experts have no ONNX form",
)
