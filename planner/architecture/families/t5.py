"""T5, T5 v1.1 and Flan-T5 (Raffel et al., 2019): encoder and decoder with relative positions.

The decoder's attention over the encoder has the roles of any attention, as it has the same part in
the dataflow; the module's name, SelfAttention or EncDecAttention, tells them apart. From v1.1 on
the checkpoints hold a head of their own (tie_word_embeddings is false).
"""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, below, embedding, head, repeat


def resolve(size: Dimensions) -> Dimensions:
    return size._replace(layers=size.number("num_decoder_layers"), encoder_layers=size.layers)


def attention(name: str, size: Dimensions) -> Iterator[Module]:
    hidden, width = size.hidden, size.queries
    yield Linear(f"{name}.q", "attention.query", width, hidden)
    yield Linear(f"{name}.k", "attention.key", width, hidden)
    yield Linear(f"{name}.v", "attention.value", width, hidden)
    yield Linear(f"{name}.o", "attention.output", hidden, width)


def mlp(size: Dimensions) -> Iterator[Module]:
    hidden, inner = size.hidden, size.intermediate
    if size.text("feed_forward_proj").startswith("gated-"):
        yield Linear("DenseReluDense.wi_0", "mlp.gate", inner, hidden)
        yield Linear("DenseReluDense.wi_1", "mlp.up", inner, hidden)
    else:
        yield Linear("DenseReluDense.wi", "mlp.up", inner, hidden)
    yield Linear("DenseReluDense.wo", "mlp.down", hidden, inner)


def sublayer(number: int, size: Dimensions, modules: Iterator[Module]) -> Iterator[Module]:
    yield Norm(f"layer.{number}.layer_norm", size.hidden, bias=False)
    yield from below(f"layer.{number}", modules)


def encoder_block(size: Dimensions) -> Iterator[Module]:
    yield from sublayer(0, size, attention("SelfAttention", size))
    yield from sublayer(1, size, mlp(size))


def decoder_block(size: Dimensions) -> Iterator[Module]:
    yield from sublayer(0, size, attention("SelfAttention", size))
    yield from sublayer(1, size, attention("EncDecAttention", size))
    yield from sublayer(2, size, mlp(size))


def modules(size: Dimensions) -> Iterator[Module]:
    yield embedding("shared", size.vocab, size.hidden)
    stacks = (
        ("encoder", size.encoder_layers, encoder_block(size)),
        ("decoder", size.layers, decoder_block(size)),
    )
    for name, layers, block in stacks:
        # The first layer's table serves all of its stack.
        table = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias"
        yield embedding(table, size.number("relative_attention_num_buckets"), size.heads)
        yield from repeat(f"{name}.block", layers, block)
        yield Norm(f"{name}.final_layer_norm", size.hidden, bias=False)
    yield from head(size)


FAMILY = Family(
    kind="encoder_decoder",
    norm="rmsnorm",
    activation="relu",
    activation_field="feed_forward_proj",
    position="relative",
    modules=modules,
    resolve=resolve,
    aliases={
        "num_attention_heads": "num_heads",
        "head_dim": "d_kv",
        "intermediate_size": "d_ff",
    },
    options={
        "num_decoder_layers": 0,
        "relative_attention_num_buckets": 32,
        "feed_forward_proj": "relu",
    },
    same_as={"num_decoder_layers": "num_hidden_layers"},
    score_dropout=("dropout_rate", 0.1),
    stream_dropout=("dropout_rate", 0.1),
    inner_dropout=("dropout_rate", 0.1),
    unbuilt="it is an encoder-decoder",
)
