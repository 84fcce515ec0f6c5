"""GPT-NeoX (Black et al., 2022), Pythia, StableLM Alpha: fused query, key and value, biases, and
attention and MLP side by side, each behind its own norm."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, embedding, head, repeat


def block(size: Dimensions) -> Iterator[Module]:
    hidden, inner, bias = size.hidden, size.intermediate, size.flag("attention_bias")
    yield Norm("input_layernorm", hidden, bias=True)
    yield Linear("attention.query_key_value", "attention.qkv", 3 * hidden, hidden, bias)
    yield Linear("attention.dense", "attention.output", hidden, hidden, bias)
    yield Norm("post_attention_layernorm", hidden, bias=True)
    yield Linear("mlp.dense_h_to_4h", "mlp.up", inner, hidden, bias=True)
    yield Linear("mlp.dense_4h_to_h", "mlp.down", hidden, inner, bias=True)


def modules(size: Dimensions) -> Iterator[Module]:
    yield embedding("gpt_neox.embed_in", size.vocab, size.hidden)
    yield from repeat("gpt_neox.layers", size.layers, block(size))
    yield Norm("gpt_neox.final_layer_norm", size.hidden, bias=True)
    yield from head(size)


FAMILY = Family(
    kind="decoder",
    norm="layernorm",
    activation="gelu",
    position="rotary",
    modules=modules,
    options={"use_parallel_residual": True},
    tied=False,
    attention_bias=True,
    parallel="use_parallel_residual",
)
