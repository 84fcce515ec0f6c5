"""The fields of a config.json that fix a model's shapes, under one set of names, and their digest.

A plan names its model by that digest, so the fields of a family never change.
"""

import hashlib
import json
from collections.abc import Mapping

from planner.architecture.dimensions import Shape
from planner.architecture.family import Family, family
from planner.errors import UsageError

Config = Mapping[str, object]

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


def shape(config: Config) -> Shape:
    """The fields that fix the shapes, under one set of names, with the family's defaults.

    Independent of the library version that wrote the file. Positions count only where they are a
    learned table. Works for any model_type; a missing field is left out.
    """
    model_type = str(config.get("model_type", ""))
    found = family(model_type)
    fields: Shape = {"model_type": model_type}
    own = found.aliases if found else {}
    for name, common in ALIASES.items():
        aliases = (own[name], *common) if name in own else common
        value = next((config[a] for a in aliases if isinstance(config.get(a), int)), None)
        if isinstance(value, int):
            fields[name] = value
        elif found:
            _check_absent(config, aliases)
    if found:
        if not found.counts_positions:
            fields.pop("max_position_embeddings", None)
        for name, default in found.options.items():
            fields[name] = _option(config, (own.get(name, name), name), default)
    _fill_defaults(fields, config, found)
    return fields


def _check_absent(config: Config, names: tuple[str, ...]) -> None:
    """A size that is there and no number would be taken for the family's default."""
    for name in names:
        if config.get(name) is not None:
            raise UsageError(f"config.json has no usable {name}: {config[name]!r}")


def digest(config: Config) -> str:
    """sha256 of the canonical JSON of `shape(config)`."""
    text = json.dumps(shape(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _option(
    config: Config,
    names: tuple[str, str],
    default: bool | int | str,  # noqa: FBT001
) -> bool | int | str:
    """The config's value, the default where it says nothing; a list is written as text."""
    name = names[0] if config.get(names[0]) is not None else names[1]
    value = config.get(name)
    if value is None:
        return default
    if isinstance(default, str) and isinstance(value, list):
        return "|".join(map(str, value))
    if type(value) is not type(default):
        raise UsageError(f"config.json has no usable {name}: {value}")
    return value


def _fill_defaults(fields: Shape, config: Config, found: Family | None) -> None:
    hidden, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    if isinstance(heads, int) and heads:
        fields.setdefault("num_key_value_heads", heads)
        if isinstance(hidden, int) and hidden % heads == 0:
            fields.setdefault("head_dim", hidden // heads)
    if found and found.expansion and isinstance(hidden, int):
        fields.setdefault("intermediate_size", found.expansion * hidden)
    for name, other in found.same_as.items() if found else ():
        fields[name] = fields[name] or fields.get(other, 0)
    tied = found.tied if found else True
    fields["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", tied))
    biased = found.attention_bias if found else False
    fields["attention_bias"] = bool(config.get("attention_bias", biased))
    fields["mlp_bias"] = bool(config.get("mlp_bias", False))
