"""Falcon (Almazrouei et al., 2023): one key and value for all heads or for groups of them,
attention and MLP side by side."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, embedding, head, repeat


def resolve(size: Dimensions) -> Dimensions:
    """Keys and values come in groups in the newer decoder; the older one has one or all."""
    if size.flag("new_decoder_architecture"):
        return size
    return size._replace(kv_heads=1 if size.flag("multi_query") else size.heads)


def norms(size: Dimensions) -> Iterator[Module]:
    implied = 2 if size.flag("new_decoder_architecture") else 1
    if not size.flag("parallel_attn"):
        names = ["input_layernorm", "post_attention_layernorm"]
    elif (size.number("num_ln_in_parallel_attn") or implied) == 2:
        names = ["ln_attn", "ln_mlp"]
    else:
        names = ["input_layernorm"]
    for name in names:
        yield Norm(name, size.hidden, bias=True)


def block(size: Dimensions) -> Iterator[Module]:
    hidden, inner, bias = size.hidden, size.intermediate, size.flag("bias")
    fused = size.queries + 2 * size.keys
    yield from norms(size)
    yield Linear("self_attention.query_key_value", "attention.qkv", fused, hidden, bias)
    yield Linear("self_attention.dense", "attention.output", hidden, hidden, bias)
    yield Linear("mlp.dense_h_to_4h", "mlp.up", inner, hidden, bias)
    yield Linear("mlp.dense_4h_to_h", "mlp.down", hidden, inner, bias)


def modules(size: Dimensions) -> Iterator[Module]:
    yield embedding("transformer.word_embeddings", size.vocab, size.hidden)
    yield from repeat("transformer.h", size.layers, block(size))
    yield Norm("transformer.ln_f", size.hidden, bias=True)
    yield from head(size)


FAMILY = Family(
    kind="decoder",
    norm="layernorm",
    activation="gelu",
    activation_field="activation",
    position="rotary",
    modules=modules,
    resolve=resolve,
    aliases={"num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size"},
    options={
        "new_decoder_architecture": False,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "num_ln_in_parallel_attn": 0,
    },
    parallel="parallel_attn",
    expansion=4,
    unbuilt="its linears are products with a transposed weight",
)
