"""StableLM (Bellagente et al., 2024): Llama's linears between layer norms."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.families import llama
from planner.architecture.family import Family
from planner.architecture.modules import Module, Norm, embedding, head, repeat


def block(size: Dimensions) -> Iterator[Module]:
    yield Norm("input_layernorm", size.hidden, bias=True)
    yield from llama.attention(size, qkv_bias=size.flag("use_qkv_bias"), output_bias=False)
    if size.flag("qk_layernorm"):
        for name, heads in (("q", size.heads), ("k", size.kv_heads)):
            norm = Norm("norm", size.head_dim, bias=False)
            for number in range(heads):
                yield norm._replace(name=f"self_attn.{name}_layernorm.norms.{number}")
    if not size.flag("use_parallel_residual"):
        yield Norm("post_attention_layernorm", size.hidden, bias=True)
    yield from llama.gated_mlp("mlp", size.hidden, size.intermediate)


def modules(size: Dimensions) -> Iterator[Module]:
    yield embedding("model.embed_tokens", size.vocab, size.hidden)
    yield from repeat("model.layers", size.layers, block(size))
    yield Norm("model.norm", size.hidden, bias=True)
    yield from head(size)


FAMILY = Family(
    kind="decoder",
    norm="layernorm",
    activation="silu",
    position="rotary",
    modules=modules,
    options={"use_qkv_bias": False, "qk_layernorm": False, "use_parallel_residual": False},
    tied=False,
    parallel="use_parallel_residual",
    qk_norm="qk_layernorm",
)
