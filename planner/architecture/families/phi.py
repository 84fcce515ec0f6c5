"""Phi-1, 1.5 and 2 (Li et al., 2023): attention and MLP side by side, biases throughout."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, embedding, head, repeat


def block(size: Dimensions) -> Iterator[Module]:
    hidden, inner = size.hidden, size.intermediate
    queries, keys = size.queries, size.keys
    yield Norm("input_layernorm", hidden, bias=True)
    yield Linear("self_attn.q_proj", "attention.query", queries, hidden, bias=True)
    yield Linear("self_attn.k_proj", "attention.key", keys, hidden, bias=True)
    yield Linear("self_attn.v_proj", "attention.value", keys, hidden, bias=True)
    yield Linear("self_attn.dense", "attention.output", hidden, queries, bias=True)
    if size.flag("qk_layernorm"):
        yield Norm("self_attn.q_layernorm", size.head_dim, bias=True)
        yield Norm("self_attn.k_layernorm", size.head_dim, bias=True)
    yield Linear("mlp.fc1", "mlp.up", inner, hidden, bias=True)
    yield Linear("mlp.fc2", "mlp.down", hidden, inner, bias=True)


def modules(size: Dimensions) -> Iterator[Module]:
    yield embedding("model.embed_tokens", size.vocab, size.hidden)
    yield from repeat("model.layers", size.layers, block(size))
    yield Norm("model.final_layernorm", size.hidden, bias=True)
    yield from head(size, bias=True)


FAMILY = Family(
    kind="decoder",
    norm="layernorm",
    activation="gelu_tanh",
    position="rotary",
    modules=modules,
    options={"qk_layernorm": False},
    tied=False,
    parallel=True,
    qk_norm="qk_layernorm",
    stream_dropout=("resid_pdrop", 0.0),
)
