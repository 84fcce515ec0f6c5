"""Qwen2 and Qwen2.5 (Yang et al., 2024): Llama's blocks with biases on query, key and value."""

from collections.abc import Iterator, Mapping

from planner.architecture.dimensions import Dimensions
from planner.architecture.families import llama
from planner.architecture.modules import Module, Norm, repeat


def block(size: Dimensions) -> Iterator[Module]:
    yield Norm("input_layernorm", size.hidden, bias=False)
    yield from llama.attention(size, qkv_bias=size.flag("attention_bias"), output_bias=False)
    yield Norm("post_attention_layernorm", size.hidden, bias=False)
    yield from llama.gated_mlp("mlp", size.hidden, size.intermediate)


def modules(size: Dimensions) -> Iterator[Module]:
    return llama.model(size, repeat("model.layers", size.layers, block(size)))


def sliding_layers(config: Mapping[str, object], layers: int) -> int:
    """The layers from max_window_layers on, where the window is used at all."""
    first = config.get("max_window_layers")
    if config.get("use_sliding_window") is not True or not isinstance(first, int):
        return 0
    return max(0, layers - first)


FAMILY = llama.FAMILY._replace(modules=modules, attention_bias=True, sliding_layers=sliding_layers)
