"""OPT (Zhang et al., 2022): learned positions, ReLU; some sizes embed in fewer dimensions."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, embedding, head, repeat

EXTRA_POSITIONS = 2
"""Rows of the table of positions before the first token's."""


def norm(size: Dimensions, name: str) -> Iterator[Module]:
    if size.flag("layer_norm_elementwise_affine"):
        yield Norm(name, size.hidden, bias=True)


def block(size: Dimensions) -> Iterator[Module]:
    hidden, inner, bias = size.hidden, size.intermediate, size.flag("enable_bias")
    yield Linear("self_attn.q_proj", "attention.query", hidden, hidden, bias)
    yield Linear("self_attn.k_proj", "attention.key", hidden, hidden, bias)
    yield Linear("self_attn.v_proj", "attention.value", hidden, hidden, bias)
    yield Linear("self_attn.out_proj", "attention.output", hidden, hidden, bias)
    yield from norm(size, "self_attn_layer_norm")
    yield Linear("fc1", "mlp.up", inner, hidden, bias)
    yield Linear("fc2", "mlp.down", hidden, inner, bias)
    yield from norm(size, "final_layer_norm")


def modules(size: Dimensions) -> Iterator[Module]:
    hidden = size.hidden
    width = size.number("word_embed_proj_dim")
    yield embedding("model.decoder.embed_tokens", size.vocab, width)
    positions = size.positions + EXTRA_POSITIONS
    yield embedding("model.decoder.embed_positions", positions, hidden)
    if width != hidden:
        yield Linear("model.decoder.project_in", "linear", hidden, width)
    yield from repeat("model.decoder.layers", size.layers, block(size))
    if size.flag("do_layer_norm_before") and not size.flag("_remove_final_layer_norm"):
        yield from norm(size, "model.decoder.final_layer_norm")
    if width != hidden:
        yield Linear("model.decoder.project_out", "linear", width, hidden)
    yield from head(size._replace(hidden=width))


FAMILY = Family(
    kind="decoder",
    norm="layernorm",
    activation="relu",
    activation_field="activation_function",
    position="learned",
    modules=modules,
    options={
        "word_embed_proj_dim": 0,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
    },
    same_as={"word_embed_proj_dim": "hidden_size"},
    counts_positions=True,
    stream_dropout=("dropout", 0.1),
    unbuilt="its MLP takes batch and positions as one axis, where no row has a tenant",
)
