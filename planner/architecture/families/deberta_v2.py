"""DeBERTa v2 and v3 (He et al., 2021): attention over content and relative positions apart."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, Table, embedding, repeat


def block(size: Dimensions) -> Iterator[Module]:
    hidden, inner = size.hidden, size.intermediate
    for name in ("query", "key", "value"):
        yield Linear(f"attention.self.{name}_proj", f"attention.{name}", hidden, hidden, bias=True)
    if size.flag("relative_attention") and not size.flag("share_att_key"):
        terms = size.text("pos_att_type").split("|")
        if "c2p" in terms:
            yield Linear("attention.self.pos_key_proj", "linear", hidden, hidden, bias=True)
        if "p2c" in terms:
            yield Linear("attention.self.pos_query_proj", "linear", hidden, hidden, bias=True)
    yield Linear("attention.output.dense", "attention.output", hidden, hidden, bias=True)
    yield Norm("attention.output.LayerNorm", hidden, bias=True)
    yield Linear("intermediate.dense", "mlp.up", inner, hidden, bias=True)
    yield Linear("output.dense", "mlp.down", hidden, inner, bias=True)
    yield Norm("output.LayerNorm", hidden, bias=True)


def embeddings(size: Dimensions) -> Iterator[Module]:
    hidden = size.hidden
    width = size.number("embedding_size")
    yield embedding("embeddings.word_embeddings", size.vocab, width)
    if size.flag("position_biased_input"):
        yield embedding("embeddings.position_embeddings", size.positions, width)
    types = size.number("type_vocab_size")
    yield embedding("embeddings.token_type_embeddings", types, width)
    if width != hidden:
        yield Linear("embeddings.embed_proj", "linear", hidden, width)
    yield Norm("embeddings.LayerNorm", hidden, bias=True)


def relative_positions(size: Dimensions) -> Iterator[Module]:
    """One table for all layers: distances in buckets, or each distance up to the longest."""
    reach = size.number("max_relative_positions")
    reach = reach if reach > 0 else size.positions
    buckets = size.number("position_buckets")
    rows = 2 * (buckets if buckets > 0 else reach)
    yield embedding("encoder.rel_embeddings", rows, size.hidden)


def modules(size: Dimensions) -> Iterator[Module]:
    yield from embeddings(size)
    if size.flag("relative_attention"):
        yield from relative_positions(size)
    if "layer_norm" in size.text("norm_rel_ebd"):
        yield Norm("encoder.LayerNorm", size.hidden, bias=True)
    yield from repeat("encoder.layer", size.layers, block(size))
    kernel = size.number("conv_kernel_size")
    if kernel:
        weights = size.hidden * size.hidden * kernel // size.number("conv_groups")
        yield Table("encoder.conv.conv", weights + size.hidden)
        yield Norm("encoder.conv.LayerNorm", size.hidden, bias=True)


FAMILY = Family(
    kind="encoder",
    norm="layernorm",
    activation="gelu",
    position="relative",
    modules=modules,
    writes_scores=True,
    unbuilt="transformers has no sdpa attention for it",
    options={
        "type_vocab_size": 0,
        "relative_attention": False,
        "max_relative_positions": -1,
        "position_buckets": -1,
        "norm_rel_ebd": "none",
        "share_att_key": False,
        "pos_att_type": "",
        "position_biased_input": True,
        "conv_kernel_size": 0,
        "conv_groups": 1,
        "embedding_size": 0,
    },
    same_as={"embedding_size": "hidden_size"},
    counts_positions=True,
    score_dropout=("attention_probs_dropout_prob", 0.1),
    stream_dropout=("hidden_dropout_prob", 0.1),
)
