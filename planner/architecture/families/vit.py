"""Vision transformer (Dosovitskiy et al., 2020): an encoder over the patches of an image."""

from collections.abc import Iterator

from planner.architecture.dimensions import Dimensions
from planner.architecture.family import Family
from planner.architecture.modules import Linear, Module, Norm, Table, embedding, repeat
from planner.errors import UsageError


def resolve(size: Dimensions) -> Dimensions:
    """A position for each patch and one for the class token."""
    image, patch = size.number("image_size"), size.number("patch_size")
    if not 1 <= patch <= image:
        raise UsageError(f"config.json has no usable patch_size: {patch} of image_size {image}")
    return size._replace(vocab=0, positions=(image // patch) ** 2 + 1)


def block(size: Dimensions) -> Iterator[Module]:
    hidden, inner, width = size.hidden, size.intermediate, size.queries
    bias = size.flag("qkv_bias")
    yield Norm("layernorm_before", hidden, bias=True)
    yield Linear("attention.q_proj", "attention.query", width, hidden, bias)
    yield Linear("attention.k_proj", "attention.key", width, hidden, bias)
    yield Linear("attention.v_proj", "attention.value", width, hidden, bias)
    yield Linear("attention.o_proj", "attention.output", hidden, width, bias=True)
    yield Norm("layernorm_after", hidden, bias=True)
    yield Linear("mlp.fc1", "mlp.up", inner, hidden, bias=True)
    yield Linear("mlp.fc2", "mlp.down", hidden, inner, bias=True)


def modules(size: Dimensions) -> Iterator[Module]:
    hidden = size.hidden
    patch = size.number("patch_size") ** 2 * size.number("num_channels")
    yield Table("embeddings.cls_token", hidden)
    yield embedding("embeddings.position_embeddings", size.positions, hidden)
    yield Table("embeddings.patch_embeddings.projection", hidden * patch + hidden)
    yield from repeat("layers", size.layers, block(size))
    yield Norm("layernorm", hidden, bias=True)
    # Not a target: the mean of the last hidden states takes its place.
    pooled = size.number("pooler_output_size")
    yield Table("pooler.dense", hidden * pooled + pooled)


FAMILY = Family(
    kind="encoder",
    norm="layernorm",
    activation="gelu",
    position="learned",
    modules=modules,
    resolve=resolve,
    options={
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "qkv_bias": True,
        "pooler_output_size": 0,
    },
    same_as={"pooler_output_size": "hidden_size"},
    image=True,
    score_dropout=("attention_probs_dropout_prob", 0.0),
    stream_dropout=("hidden_dropout_prob", 0.0),
    unbuilt="its input is an image",
)
