"""A model's shapes from its config.json: dimensions, linears with their roles, parameter count."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from planner.errors import UsageError
from planner.method import Target

ALIASES = {
    "hidden_size": ("hidden_size", "n_embd", "dim", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_key_value_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "intermediate_size": ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim"),
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "n_ctx"),
    "type_vocab_size": ("type_vocab_size",),
}
ROTARY = ("llama", "mistral", "qwen2", "qwen3")
ENCODERS = ("bert", "roberta")
LEARNED_POSITIONS = ("gpt2", *ENCODERS)
LARGEST_SIZE = 2**31
LARGEST = {"num_hidden_layers": 4096, "num_attention_heads": 65536}
"""Beyond these a file is damaged, and the lists made from it would not end."""
FAMILIES = (*ROTARY, *LEARNED_POSITIONS)

Shape = dict[str, int | bool | str]
Config = Mapping[str, object]


@dataclass(frozen=True)
class Architecture:
    """Dimensions of one model; `parameters` counts tied weights once."""

    model_type: str
    kind: Literal["decoder", "encoder"]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    positions: int
    gated: bool
    tied: bool
    targets: tuple[Target, ...]
    parameters: int

    @cached_property
    def linear_parameters(self) -> int:
        """Weights of the linears that a format stores; embeddings, head, norms, biases are not."""
        return sum(t.out_features * t.in_features for t in self.targets if t.role != "head")

    @cached_property
    def largest_weight(self) -> int:
        return max(t.out_features * t.in_features for t in self.targets if t.role != "head")


def shape(config: Config) -> Shape:
    """The fields that fix the shapes, under one set of names, with the family's defaults.

    Independent of the library version that wrote the file. Positions count only where they are a
    learned table. Works for any model_type; a missing field is left out.
    """
    model_type = str(config.get("model_type", ""))
    fields: Shape = {"model_type": model_type}
    for name, aliases in ALIASES.items():
        found = next((config[a] for a in aliases if isinstance(config.get(a), int)), None)
        if isinstance(found, int):
            fields[name] = found
    if model_type in ROTARY:
        fields.pop("max_position_embeddings", None)
    _fill_defaults(fields, config)
    return fields


def _fill_defaults(fields: Shape, config: Config) -> None:
    hidden, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    if isinstance(heads, int) and heads:
        fields.setdefault("num_key_value_heads", heads)
        if isinstance(hidden, int):
            fields.setdefault("head_dim", hidden // heads)
    if fields["model_type"] == "gpt2" and isinstance(hidden, int):
        fields.setdefault("intermediate_size", 4 * hidden)
    model_type = fields["model_type"]
    tied = config.get("tie_word_embeddings", model_type not in ROTARY)
    fields["tie_word_embeddings"] = bool(tied)
    fields["attention_bias"] = bool(config.get("attention_bias", model_type == "qwen2"))
    fields["mlp_bias"] = bool(config.get("mlp_bias", False))


def digest(config: Config) -> str:
    """sha256 of the canonical JSON of `shape(config)`."""
    text = json.dumps(shape(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def architecture(config: Config) -> Architecture:
    """Parse a config.json; raises UsageError for a family or a field that is missing."""
    fields = shape(config)
    model_type = str(fields["model_type"])
    if model_type not in FAMILIES:
        raise UsageError(
            f"unknown model_type '{model_type}'; families are {', '.join(FAMILIES)}",
            hint="give a config.json of one of these families",
        )
    size = _sizes(fields)
    rotary = model_type in ROTARY
    tied = bool(fields["tie_word_embeddings"])
    has_head = rotary and not tied
    targets = tuple(_targets(model_type, size, has_head=has_head))
    limit = config.get("max_position_embeddings", size["max_position_embeddings"])
    return Architecture(
        model_type=model_type,
        kind="encoder" if model_type in ENCODERS else "decoder",
        hidden=size["hidden_size"],
        layers=size["num_hidden_layers"],
        heads=size["num_attention_heads"],
        kv_heads=size["num_key_value_heads"],
        head_dim=size["head_dim"],
        intermediate=size["intermediate_size"],
        vocab=size["vocab_size"],
        positions=limit if isinstance(limit, int) else 0,
        gated=rotary,
        tied=tied,
        targets=targets,
        parameters=_weights(targets) + _other_parameters(fields, size),
    )


def _sizes(fields: Shape) -> dict[str, int]:
    needed = [n for n in ALIASES if n != "type_vocab_size"]
    sizes = {n: v for n, v in fields.items() if isinstance(v, int) and not isinstance(v, bool)}
    if fields["model_type"] in ROTARY:
        sizes.setdefault("max_position_embeddings", 0)
    for name in needed:
        least = 0 if name == "max_position_embeddings" else 1
        if not least <= sizes.get(name, -1) <= LARGEST.get(name, LARGEST_SIZE):
            raise UsageError(f"config.json has no usable {name}: {fields.get(name)}")
    return sizes


def _targets(model_type: str, size: dict[str, int], *, has_head: bool) -> Iterator[Target]:
    block = _block(model_type, size)
    prefix = {"gpt2": "transformer.h"}.get(model_type, "model.layers")
    prefix = "encoder.layer" if model_type in ENCODERS else prefix
    for layer in range(size["num_hidden_layers"]):
        for name, role, out, width in block:
            yield Target(f"{prefix}.{layer}.{name}", role, out, width)
    if has_head:
        yield Target("lm_head", "head", size["vocab_size"], size["hidden_size"])


def _block(model_type: str, size: dict[str, int]) -> list[tuple[str, str, int, int]]:
    """Name, role, out and in of the linears of one block."""
    hidden, inner = size["hidden_size"], size["intermediate_size"]
    queries = size["num_attention_heads"] * size["head_dim"]
    keys = size["num_key_value_heads"] * size["head_dim"]
    if model_type in ROTARY:
        return [
            ("self_attn.q_proj", "attention.query", queries, hidden),
            ("self_attn.k_proj", "attention.key", keys, hidden),
            ("self_attn.v_proj", "attention.value", keys, hidden),
            ("self_attn.o_proj", "attention.output", hidden, queries),
            ("mlp.gate_proj", "mlp.gate", inner, hidden),
            ("mlp.up_proj", "mlp.up", inner, hidden),
            ("mlp.down_proj", "mlp.down", hidden, inner),
        ]
    if model_type == "gpt2":
        return [
            ("attn.c_attn", "linear", 3 * hidden, hidden),
            ("attn.c_proj", "attention.output", hidden, hidden),
            ("mlp.c_fc", "mlp.up", inner, hidden),
            ("mlp.c_proj", "mlp.down", hidden, inner),
        ]
    return [
        ("attention.self.query", "attention.query", hidden, hidden),
        ("attention.self.key", "attention.key", hidden, hidden),
        ("attention.self.value", "attention.value", hidden, hidden),
        ("attention.output.dense", "attention.output", hidden, hidden),
        ("intermediate.dense", "mlp.up", inner, hidden),
        ("output.dense", "mlp.down", hidden, inner),
    ]


def _weights(targets: tuple[Target, ...]) -> int:
    return sum(t.out_features * t.in_features for t in targets)


def _other_parameters(fields: Shape, size: dict[str, int]) -> int:
    """Embeddings, norms, biases, and an encoder's pooler, whose place the mean takes."""
    hidden, inner = size["hidden_size"], size["intermediate_size"]
    layers = size["num_hidden_layers"]
    embedding = size["vocab_size"] * hidden
    if fields["model_type"] in ROTARY:
        return embedding + hidden + layers * _rotary_vectors(fields, size)
    positions = size["max_position_embeddings"] * hidden
    if fields["model_type"] == "gpt2":
        # Two norms with bias, and the biases of c_attn, c_proj, c_fc and c_proj.
        block = 4 * hidden + 5 * hidden + inner
        return embedding + positions + 2 * hidden + layers * block
    types = size.get("type_vocab_size", 0) * hidden
    pooler = hidden * hidden + hidden
    # Two norms with bias, six biases; outside the blocks one norm.
    block = 4 * hidden + 5 * hidden + inner
    return embedding + positions + types + pooler + 2 * hidden + layers * block


def _rotary_vectors(fields: Shape, size: dict[str, int]) -> int:
    """Norms and biases of one llama-like block."""
    hidden, inner = size["hidden_size"], size["intermediate_size"]
    queries = size["num_attention_heads"] * size["head_dim"]
    keys = size["num_key_value_heads"] * size["head_dim"]
    count = 2 * hidden
    if fields["model_type"] == "qwen3":
        count += 2 * size["head_dim"]
    if fields["attention_bias"]:
        # Qwen2 has no bias on the output projection; the others have it on all four.
        count += queries + 2 * keys + (0 if fields["model_type"] == "qwen2" else hidden)
    if fields["mlp_bias"]:
        count += 2 * inner + hidden
    return count
