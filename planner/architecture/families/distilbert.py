"""DistilBERT (Sanh et al., 2019): BERT's blocks, half as many, without token types or pooler."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, embedding, repeat


def block(size: Dimensions) -> Iterator[Module]:
    hidden, inner = size.hidden, size.intermediate
    yield Linear("attention.q_lin", "attention.query", hidden, hidden, bias=True)
    yield Linear("attention.k_lin", "attention.key", hidden, hidden, bias=True)
    yield Linear("attention.v_lin", "attention.value", hidden, hidden, bias=True)
    yield Linear("attention.out_lin", "attention.output", hidden, hidden, bias=True)
    yield Norm("sa_layer_norm", hidden, bias=True)
    yield Linear("ffn.lin1", "mlp.up", inner, hidden, bias=True)
    yield Linear("ffn.lin2", "mlp.down", hidden, inner, bias=True)
    yield Norm("output_layer_norm", hidden, bias=True)


def modules(size: Dimensions) -> Iterator[Module]:
    yield embedding("embeddings.word_embeddings", size.vocab, size.hidden)
    yield embedding("embeddings.position_embeddings", size.positions, size.hidden)
    yield Norm("embeddings.LayerNorm", size.hidden, bias=True)
    yield from repeat("transformer.layer", size.layers, block(size))


FAMILY = Family(
    kind="encoder",
    norm="layernorm",
    activation="gelu",
    activation_field="activation",
    position="learned",
    modules=modules,
    counts_positions=True,
    score_dropout=("attention_dropout", 0.1),
    stream_dropout=("dropout", 0.1),
)
