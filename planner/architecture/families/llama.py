"""Llama (Touvron et al., 2023): pre-norm blocks, rotary positions, grouped-query attention."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, embedding, head, repeat


def attention(size: Dimensions, *, qkv_bias: bool, output_bias: bool) -> Iterator[Module]:
    hidden, queries, keys = size.hidden, size.queries, size.keys
    yield Linear("self_attn.q_proj", "attention.query", queries, hidden, qkv_bias)
    yield Linear("self_attn.k_proj", "attention.key", keys, hidden, qkv_bias)
    yield Linear("self_attn.v_proj", "attention.value", keys, hidden, qkv_bias)
    yield Linear("self_attn.o_proj", "attention.output", hidden, queries, output_bias)


def gated_mlp(name: str, hidden: int, inner: int, *, bias: bool = False) -> Iterator[Module]:
    yield Linear(f"{name}.gate_proj", "mlp.gate", inner, hidden, bias)
    yield Linear(f"{name}.up_proj", "mlp.up", inner, hidden, bias)
    yield Linear(f"{name}.down_proj", "mlp.down", hidden, inner, bias)


def block(size: Dimensions) -> Iterator[Module]:
    bias = size.flag("attention_bias")
    yield Norm("input_layernorm", size.hidden, bias=False)
    yield from attention(size, qkv_bias=bias, output_bias=bias)
    yield Norm("post_attention_layernorm", size.hidden, bias=False)
    yield from gated_mlp("mlp", size.hidden, size.intermediate, bias=size.flag("mlp_bias"))


def model(size: Dimensions, blocks: Iterator[Module]) -> Iterator[Module]:
    """The blocks between the embedding and the last norm and head."""
    yield embedding("model.embed_tokens", size.vocab, size.hidden)
    yield from blocks
    yield Norm("model.norm", size.hidden, bias=False)
    yield from head(size)


def modules(size: Dimensions) -> Iterator[Module]:
    return model(size, repeat("model.layers", size.layers, block(size)))


FAMILY = Family(
    kind="decoder",
    norm="rmsnorm",
    activation="silu",
    position="rotary",
    modules=modules,
    tied=False,
)
