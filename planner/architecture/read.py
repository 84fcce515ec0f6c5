"""Parse a config.json: sizes checked, the family's modules listed, the record made of them."""

from collections.abc import Mapping

from planner.architecture.dimensions import Dimensions, Shape
from planner.architecture.family import FAMILIES, Family, family
from planner.architecture.fields import ALIASES, Config, shape
from planner.architecture.modules import Linear, Norm
from planner.architecture.record import Activation, Architecture
from planner.errors import UsageError
from planner.method import Target

LARGEST_SIZE = 2**31
LARGEST = {"num_hidden_layers": 4096, "encoder_layers": 4096, "num_attention_heads": 65536}
LARGEST_MODULES = 2**18
"""Beyond these a file is damaged, and the lists made from it would not end."""

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def architecture(config: Config) -> Architecture:
    """Parse a config.json; raises UsageError for a family or a field that is missing, and for
    weights that are quantised already.
    """
    fields = shape(config)
    model_type = str(fields["model_type"])
    found = family(model_type)
    if found is None:
        raise UsageError(
            f"unknown model_type '{model_type}'; families are {', '.join(FAMILIES)}",
            hint=_other_config(config),
        )
    _check_dense(config)
    size = _dimensions(fields, found)
    modules = tuple(found.modules(size))
    linears = tuple(m for m in modules if isinstance(m, Linear))
    window, sliding_layers = _sliding(config, found, size.layers)
    return Architecture(
        model_type=model_type,
        kind=found.kind,
        hidden=size.hidden,
        layers=size.layers,
        heads=size.heads,
        kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        intermediate=size.intermediate,
        vocab=size.vocab,
        positions=_longest_input(config, found, size),
        gated=any(m.role.endswith((".gate", ".gate_up")) for m in linears),
        tied=size.tied,
        targets=tuple(Target(m.name, m.role, m.out_features, m.in_features) for m in linears),
        parameters=sum(m.parameters for m in modules),
        norms=tuple(m for m in modules if isinstance(m, Norm)),
        norm=found.norm,
        activation=_activation(config, found),
        position=found.position,
        parallel=_trait(found.parallel, size),
        qk_norm=_trait(found.qk_norm, size),
        writes_scores=found.writes_scores,
        caps_scores=_caps(config, found, "attn_logit_softcapping"),
        caps_logits=_caps(config, found, "final_logit_softcapping"),
        drops_scores=_drops(config, found.score_dropout),
        drops_stream=_drops(config, found.stream_dropout),
        drops_inner=_drops(config, found.inner_dropout),
        experts=size.experts,
        experts_per_token=size.experts_per_token,
        expert_intermediate=size.expert_intermediate,
        encoder_layers=size.encoder_layers,
        biases=frozenset(m.name for m in linears if m.bias),
        sliding_window=window,
        sliding_layers=sliding_layers,
        unbuilt=found.unbuilt,
    )


def _other_config(config: Config) -> str:
    """What to give in place of a config that no family reads.

    A text_config is not planned in its stead: the weights of the other towers take memory too.
    """
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, Mapping) else None
    if isinstance(inner, str) and family(inner) is not None:
        return (
            f"its text_config is a '{inner}', which can be planned without the model's other "
            "towers: give it as a config.json of its own"
        )
    return "give a config.json of one of these families"


def _check_dense(config: Config) -> None:
    """A plan's format quantises dense weights; the bytes and the loss of others are not known."""
    quantized = config.get("quantization_config")
    if quantized:
        named = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
        raise UsageError(
            f"config.json is of weights already quantised by "
            f"{named or 'a method that it does not name'}, and a plan quantises its own base",
            hint="give the config.json of the unquantised checkpoint; the plan's format says how "
            "its weights are stored",
        )


def _dimensions(fields: Shape, found: Family) -> Dimensions:
    for name in ALIASES:
        if name in fields or name in _needed(found):
            least = 0 if name in ("max_position_embeddings", "type_vocab_size") else 1
            _check_size(fields, name, least)
    if "head_dim" not in fields:
        raise UsageError(
            f"config.json has no usable num_attention_heads: {fields['num_attention_heads']} do "
            f"not divide hidden_size {fields['hidden_size']}",
            hint="give head_dim where heads are not hidden_size / num_attention_heads wide",
        )
    for name, default in found.options.items():
        if _is_number(default):
            _check_size(fields, name, min(0, int(default)))
    size = Dimensions(
        hidden=int(fields["hidden_size"]),
        layers=int(fields["num_hidden_layers"]),
        heads=int(fields["num_attention_heads"]),
        kv_heads=int(fields["num_key_value_heads"]),
        head_dim=int(fields["head_dim"]),
        intermediate=int(fields["intermediate_size"]),
        vocab=int(fields.get("vocab_size", 0)),
        positions=int(fields.get("max_position_embeddings", 0)),
        tied=bool(fields["tie_word_embeddings"]),
        fields=fields,
    )
    return _bounded(found.resolve(size))


def _needed(found: Family) -> set[str]:
    needed = set(ALIASES) - {"type_vocab_size", "head_dim"}
    if not found.counts_positions:
        needed.remove("max_position_embeddings")
    return needed - {"vocab_size"} if found.image else needed


def _check_size(fields: Shape, name: str, least: int) -> None:
    value = fields.get(name)
    if not _is_number(value) or not least <= int(value or 0) <= LARGEST.get(name, LARGEST_SIZE):
        raise UsageError(f"config.json has no usable {name}: {value}")


def _bounded(size: Dimensions) -> Dimensions:
    if size.heads % size.kv_heads:
        raise UsageError(
            f"config.json has no usable num_key_value_heads: {size.kv_heads} do not divide "
            f"{size.heads} heads"
        )
    if size.layers * size.experts > LARGEST_MODULES:
        raise UsageError(f"config.json has no usable num_experts: {size.experts}")
    if not min(1, size.experts) <= size.experts_per_token <= max(size.experts, 0):
        raise UsageError(
            f"config.json has no usable num_experts_per_tok: {size.experts_per_token} of "
            f"{size.experts} experts"
        )
    return size


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _trait(trait: bool | str, size: Dimensions) -> bool:  # noqa: FBT001
    return size.flag(trait) if isinstance(trait, str) else trait


def _caps(config: Config, found: Family, name: str) -> bool:
    """Whether there is such a cap; where the config is silent, transformers has one."""
    return found.soft_caps and config.get(name, True) is not None


def _drops(config: Config, rate: tuple[str, float]) -> bool:
    name, default = rate
    return bool(config.get(name, default))


def _longest_input(config: Config, found: Family, size: Dimensions) -> int:
    if found.counts_positions or found.image:
        return size.positions - found.reserved_positions
    name = "max_position_embeddings"
    limit = config.get(found.aliases.get(name, name))
    return limit if isinstance(limit, int) else 0


def _activation(config: Config, found: Family) -> Activation:
    value = config.get(found.activation_field)
    if value is None:
        return found.activation
    name = str(value).removeprefix("gated-")
    if name not in ACTIVATIONS:
        raise UsageError(
            f"config.json has no usable {found.activation_field}: '{value}'; activations are "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _sliding(config: Config, found: Family, layers: int) -> tuple[int, int]:
    """Tokens that a sliding layer looks back and how many such layers there are."""
    window = config.get(found.window_field)
    if found.sliding_layers is None or not isinstance(window, int) or window <= 0:
        return 0, 0
    listed = config.get("layer_types")
    if isinstance(listed, list):
        sliding = sum(kind == "sliding_attention" for kind in listed)
    else:
        sliding = found.sliding_layers(config, layers)
    return (window, sliding) if sliding else (0, 0)
