"""OLMo 2 (Walsh et al., 2024): norms after attention and MLP, and over all of query and key."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.families import llama
from planner.architecture.modules import Module, Norm, repeat


def block(size: Dimensions) -> Iterator[Module]:
    bias = size.flag("attention_bias")
    yield from llama.attention(size, qkv_bias=bias, output_bias=bias)
    yield Norm("self_attn.q_norm", size.queries, bias=False)
    yield Norm("self_attn.k_norm", size.keys, bias=False)
    yield Norm("post_attention_layernorm", size.hidden, bias=False)
    yield from llama.gated_mlp("mlp", size.hidden, size.intermediate)
    yield Norm("post_feedforward_layernorm", size.hidden, bias=False)


def modules(size: Dimensions) -> Iterator[Module]:
    return llama.model(size, repeat("model.layers", size.layers, block(size)))


FAMILY = llama.FAMILY._replace(modules=modules, qk_norm=True)
