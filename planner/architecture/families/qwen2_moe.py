"""Qwen2 with experts (Yang et al., 2024): beside the routed experts one that every token passes."""

from collections.abc import Iterable, Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.families import llama, mixtral, qwen2, qwen3_moe
from planner.architecture.modules import Linear, Module, Norm


def resolve(size: Dimensions) -> Dimensions:
    shared = size.number("shared_expert_intermediate_size")
    return qwen3_moe.resolve(size)._replace(intermediate=shared)


def experts(size: Dimensions) -> Iterator[Module]:
    yield from mixtral.experts(size)
    yield from llama.gated_mlp("mlp.shared_expert", size.hidden, size.intermediate)
    yield Linear("mlp.shared_expert_gate", "router", 1, size.hidden)


def block(size: Dimensions, mlp: Iterable[Module]) -> Iterator[Module]:
    yield Norm("input_layernorm", size.hidden, bias=False)
    yield from llama.attention(size, qkv_bias=size.flag("qkv_bias"), output_bias=False)
    yield Norm("post_attention_layernorm", size.hidden, bias=False)
    yield from mlp


def modules(size: Dimensions) -> Iterator[Module]:
    dense = llama.gated_mlp("mlp", size.hidden, size.number("intermediate_size"))
    blocks = qwen3_moe.layers(size, block(size, experts(size)), block(size, dense))
    return llama.model(size, blocks)


FAMILY = qwen2.FAMILY._replace(
    modules=modules,
    resolve=resolve,
    options=qwen3_moe.OPTIONS
    | {
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "qkv_bias": True,
    },
    attention_bias=False,
    unbuilt="its routed experts have no ONNX form",
)
