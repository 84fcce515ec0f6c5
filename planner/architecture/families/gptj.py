"""GPT-J (Wang and Komatsuzaki, 2021): attention and MLP side by side behind one norm."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, embedding, head, repeat


def block(size: Dimensions) -> Iterator[Module]:
    hidden, inner = size.hidden, size.intermediate
    yield Norm("ln_1", hidden, bias=True)
    yield Linear("attn.q_proj", "attention.query", hidden, hidden)
    yield Linear("attn.k_proj", "attention.key", hidden, hidden)
    yield Linear("attn.v_proj", "attention.value", hidden, hidden)
    yield Linear("attn.out_proj", "attention.output", hidden, hidden)
    yield Linear("mlp.fc_in", "mlp.up", inner, hidden, bias=True)
    yield Linear("mlp.fc_out", "mlp.down", hidden, inner, bias=True)


def modules(size: Dimensions) -> Iterator[Module]:
    yield embedding("transformer.wte", size.vocab, size.hidden)
    yield from repeat("transformer.h", size.layers, block(size))
    yield Norm("transformer.ln_f", size.hidden, bias=True)
    yield from head(size, bias=True)


FAMILY = Family(
    kind="decoder",
    norm="layernorm",
    activation="gelu_tanh",
    activation_field="activation_function",
    position="rotary",
    modules=modules,
    writes_scores=True,
    unbuilt="transformers has no sdpa attention for it",
    aliases={"max_position_embeddings": "n_positions"},
    tied=False,
    parallel=True,
    expansion=4,
    score_dropout=("attn_pdrop", 0.0),
    stream_dropout=("resid_pdrop", 0.0),
)
