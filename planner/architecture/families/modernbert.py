"""ModernBERT (Warner et al., 2024): pre-norm encoder, rotary, GeGLU; two layers in three look one
window around."""

from collections.abc import Iterator, Mapping

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, below, embedding


def block(size: Dimensions, *, first: bool) -> Iterator[Module]:
    """The first has no norm before its attention: the embedding ends in one."""
    hidden, inner = size.hidden, size.intermediate
    attention_bias, mlp_bias = size.flag("attention_bias"), size.flag("mlp_bias")
    if not first:
        yield Norm("attn_norm", hidden, size.flag("norm_bias"))
    yield Linear("attn.Wqkv", "attention.qkv", 3 * size.queries, hidden, attention_bias)
    yield Linear("attn.Wo", "attention.output", hidden, size.queries, attention_bias)
    yield Norm("mlp_norm", hidden, size.flag("norm_bias"))
    yield Linear("mlp.Wi", "mlp.gate_up", 2 * inner, hidden, mlp_bias)
    yield Linear("mlp.Wo", "mlp.down", hidden, inner, mlp_bias)


def modules(size: Dimensions) -> Iterator[Module]:
    yield embedding("embeddings.tok_embeddings", size.vocab, size.hidden)
    yield Norm("embeddings.norm", size.hidden, size.flag("norm_bias"))
    for number in range(size.layers):
        yield from below(f"layers.{number}", block(size, first=number == 0))
    yield Norm("final_norm", size.hidden, size.flag("norm_bias"))


def sliding_layers(config: Mapping[str, object], layers: int) -> int:
    every = config.get("global_attn_every_n_layers", 3)
    return layers - -(-layers // every) if isinstance(every, int) and every > 0 else 0


FAMILY = Family(
    kind="encoder",
    norm="layernorm",
    activation="gelu",
    activation_field="hidden_activation",
    position="rotary",
    modules=modules,
    options={"norm_bias": False},
    inner_dropout=("mlp_dropout", 0.0),
    window_field="local_attention",
    sliding_layers=sliding_layers,
)
