"""Qwen3 (Yang et al., 2025): Llama's blocks with a norm over each head's query and key."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.families import llama, qwen2
from planner.architecture.modules import Module, Norm, repeat


def attention(size: Dimensions) -> Iterator[Module]:
    bias = size.flag("attention_bias")
    yield from llama.attention(size, qkv_bias=bias, output_bias=bias)
    yield Norm("self_attn.q_norm", size.head_dim, bias=False)
    yield Norm("self_attn.k_norm", size.head_dim, bias=False)


def block(size: Dimensions) -> Iterator[Module]:
    yield Norm("input_layernorm", size.hidden, bias=False)
    yield from attention(size)
    yield Norm("post_attention_layernorm", size.hidden, bias=False)
    yield from llama.gated_mlp("mlp", size.hidden, size.intermediate)


def modules(size: Dimensions) -> Iterator[Module]:
    return llama.model(size, repeat("model.layers", size.layers, block(size)))


FAMILY = llama.FAMILY._replace(modules=modules, qk_norm=True, sliding_layers=qwen2.sliding_layers)
