"""GPT-2 (Radford et al., 2019): learned positions, one linear for query, key and value, biases."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, embedding, head, repeat


def block(size: Dimensions) -> Iterator[Module]:
    hidden, inner = size.hidden, size.intermediate
    yield Norm("ln_1", hidden, bias=True)
    yield Linear("attn.c_attn", "attention.qkv", 3 * hidden, hidden, bias=True)
    yield Linear("attn.c_proj", "attention.output", hidden, hidden, bias=True)
    yield Norm("ln_2", hidden, bias=True)
    yield Linear("mlp.c_fc", "mlp.up", inner, hidden, bias=True)
    yield Linear("mlp.c_proj", "mlp.down", hidden, inner, bias=True)


def modules(size: Dimensions) -> Iterator[Module]:
    yield embedding("transformer.wte", size.vocab, size.hidden)
    yield embedding("transformer.wpe", size.positions, size.hidden)
    yield from repeat("transformer.h", size.layers, block(size))
    yield Norm("transformer.ln_f", size.hidden, bias=True)
    yield from head(size)


FAMILY = Family(
    kind="decoder",
    norm="layernorm",
    activation="gelu_tanh",
    activation_field="activation_function",
    position="learned",
    modules=modules,
    counts_positions=True,
    expansion=4,
    score_dropout=("attn_pdrop", 0.1),
    stream_dropout=("resid_pdrop", 0.1),
)
