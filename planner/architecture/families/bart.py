"""BART (Lewis et al., 2019): post-norm encoder and decoder with learned positions.

The decoder's attention over the encoder has the roles of any attention, as it has the same part in
the dataflow; the module's name, self_attn or encoder_attn, tells them apart.
"""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, embedding, head, repeat

EXTRA_POSITIONS = 2
"""Rows of the tables of positions before the first token's."""


def resolve(size: Dimensions) -> Dimensions:
    return size._replace(encoder_layers=size.number("encoder_layers"))


def attention(name: str, hidden: int) -> Iterator[Module]:
    yield Linear(f"{name}.q_proj", "attention.query", hidden, hidden, bias=True)
    yield Linear(f"{name}.k_proj", "attention.key", hidden, hidden, bias=True)
    yield Linear(f"{name}.v_proj", "attention.value", hidden, hidden, bias=True)
    yield Linear(f"{name}.out_proj", "attention.output", hidden, hidden, bias=True)
    yield Norm(f"{name}_layer_norm", hidden, bias=True)


def mlp(hidden: int, inner: int) -> Iterator[Module]:
    yield Linear("fc1", "mlp.up", inner, hidden, bias=True)
    yield Linear("fc2", "mlp.down", hidden, inner, bias=True)
    yield Norm("final_layer_norm", hidden, bias=True)


def encoder_block(size: Dimensions) -> Iterator[Module]:
    yield from attention("self_attn", size.hidden)
    yield from mlp(size.hidden, size.number("encoder_ffn_dim"))


def decoder_block(size: Dimensions) -> Iterator[Module]:
    yield from attention("self_attn", size.hidden)
    yield from attention("encoder_attn", size.hidden)
    yield from mlp(size.hidden, size.intermediate)


def modules(size: Dimensions) -> Iterator[Module]:
    yield embedding("model.shared", size.vocab, size.hidden)
    stacks = (
        ("model.encoder", size.encoder_layers, encoder_block(size)),
        ("model.decoder", size.layers, decoder_block(size)),
    )
    for name, layers, block in stacks:
        if not size.tied:
            yield embedding(f"{name}.embed_tokens", size.vocab, size.hidden)
        positions = size.positions + EXTRA_POSITIONS
        yield embedding(f"{name}.embed_positions", positions, size.hidden)
        yield Norm(f"{name}.layernorm_embedding", size.hidden, bias=True)
        yield from repeat(f"{name}.layers", layers, block)
    yield from head(size)


FAMILY = Family(
    kind="encoder_decoder",
    norm="layernorm",
    activation="gelu",
    activation_field="activation_function",
    position="learned",
    modules=modules,
    resolve=resolve,
    aliases={
        "hidden_size": "d_model",
        "num_hidden_layers": "decoder_layers",
        "num_attention_heads": "decoder_attention_heads",
        "intermediate_size": "decoder_ffn_dim",
    },
    options={"encoder_layers": 12, "encoder_ffn_dim": 4096},
    counts_positions=True,
    stream_dropout=("dropout", 0.1),
    unbuilt="it is an encoder-decoder",
)
