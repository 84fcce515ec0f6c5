"""Gemma 2 (Riviere et al., 2024): norms before and after attention and MLP; every other layer
looks back one sliding window; scores, in eager attention alone, and logits are soft-capped."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.families import gemma, llama
from planner.architecture.modules import Module, Norm, repeat


def block(size: Dimensions) -> Iterator[Module]:
    bias = size.flag("attention_bias")
    yield Norm("input_layernorm", size.hidden, bias=False)
    yield from llama.attention(size, qkv_bias=bias, output_bias=bias)
    yield Norm("post_attention_layernorm", size.hidden, bias=False)
    yield Norm("pre_feedforward_layernorm", size.hidden, bias=False)
    yield from llama.gated_mlp("mlp", size.hidden, size.intermediate)
    yield Norm("post_feedforward_layernorm", size.hidden, bias=False)


def modules(size: Dimensions) -> Iterator[Module]:
    return llama.model(size, repeat("model.layers", size.layers, block(size)))


FAMILY = gemma.FAMILY._replace(
    modules=modules,
    sliding_layers=lambda _, layers: (layers + 1) // 2,
    writes_scores=True,
    soft_caps=True,
    unbuilt="transformers has no sdpa attention for it",
)
