"""Phi-3 and Phi-4 (Abdin et al., 2024): Llama's blocks with fused projections."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.families import llama
from planner.architecture.modules import Linear, Module, Norm, repeat


def block(size: Dimensions) -> Iterator[Module]:
    hidden, inner, queries = size.hidden, size.intermediate, size.queries
    yield Norm("input_layernorm", hidden, bias=False)
    yield Linear("self_attn.qkv_proj", "attention.qkv", queries + 2 * size.keys, hidden)
    yield Linear("self_attn.o_proj", "attention.output", hidden, queries)
    yield Norm("post_attention_layernorm", hidden, bias=False)
    yield Linear("mlp.gate_up_proj", "mlp.gate_up", 2 * inner, hidden)
    yield Linear("mlp.down_proj", "mlp.down", hidden, inner)


def modules(size: Dimensions) -> Iterator[Module]:
    return llama.model(size, repeat("model.layers", size.layers, block(size)))


FAMILY = llama.FAMILY._replace(
    modules=modules,
    sliding_layers=lambda _, layers: layers,
    stream_dropout=("resid_pdrop", 0.0),
)
