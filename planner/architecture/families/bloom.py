"""BLOOM (Le Scao et al., 2022): ALiBi, a norm after the embedding, biases throughout."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, embedding, head, repeat


def block(size: Dimensions) -> Iterator[Module]:
    hidden, inner = size.hidden, size.intermediate
    yield Norm("input_layernorm", hidden, bias=True)
    yield Linear("self_attention.query_key_value", "attention.qkv", 3 * hidden, hidden, bias=True)
    yield Linear("self_attention.dense", "attention.output", hidden, hidden, bias=True)
    yield Norm("post_attention_layernorm", hidden, bias=True)
    yield Linear("mlp.dense_h_to_4h", "mlp.up", inner, hidden, bias=True)
    yield Linear("mlp.dense_4h_to_h", "mlp.down", hidden, inner, bias=True)


def modules(size: Dimensions) -> Iterator[Module]:
    yield embedding("transformer.word_embeddings", size.vocab, size.hidden)
    yield Norm("transformer.word_embeddings_layernorm", size.hidden, bias=True)
    yield from repeat("transformer.h", size.layers, block(size))
    yield Norm("transformer.ln_f", size.hidden, bias=True)
    yield from head(size)


FAMILY = Family(
    kind="decoder",
    norm="layernorm",
    # Its tanh form is one function of autograd, which keeps what a kernel would.
    activation="gelu",
    position="alibi",
    writes_scores=True,
    unbuilt="transformers has no sdpa attention for it",
    modules=modules,
    aliases={"hidden_size": "n_embed"},
    expansion=4,
)
