"""BERT (Devlin et al., 2018): post-norm encoder with learned positions and a pooler."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, Table, embedding, repeat


def block(size: Dimensions) -> Iterator[Module]:
    hidden, inner = size.hidden, size.intermediate
    yield Linear("attention.self.query", "attention.query", hidden, hidden, bias=True)
    yield Linear("attention.self.key", "attention.key", hidden, hidden, bias=True)
    yield Linear("attention.self.value", "attention.value", hidden, hidden, bias=True)
    yield Linear("attention.output.dense", "attention.output", hidden, hidden, bias=True)
    yield Norm("attention.output.LayerNorm", hidden, bias=True)
    yield Linear("intermediate.dense", "mlp.up", inner, hidden, bias=True)
    yield Linear("output.dense", "mlp.down", hidden, inner, bias=True)
    yield Norm("output.LayerNorm", hidden, bias=True)


def modules(size: Dimensions) -> Iterator[Module]:
    hidden = size.hidden
    yield embedding("embeddings.word_embeddings", size.vocab, hidden)
    yield embedding("embeddings.position_embeddings", size.positions, hidden)
    types = size.number("type_vocab_size")
    yield embedding("embeddings.token_type_embeddings", types, hidden)
    yield Norm("embeddings.LayerNorm", hidden, bias=True)
    yield from repeat("encoder.layer", size.layers, block(size))
    # Not a target: the mean of the last hidden states takes its place.
    yield Table("pooler.dense", hidden * hidden + hidden)


FAMILY = Family(
    kind="encoder",
    norm="layernorm",
    activation="gelu",
    position="learned",
    modules=modules,
    counts_positions=True,
    score_dropout=("attention_probs_dropout_prob", 0.1),
    stream_dropout=("hidden_dropout_prob", 0.1),
)
