"""A family declares how one model_type is read: names of its fields, defaults and modules."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from planner.architecture import families
from planner.architecture.dimensions import Dimensions
from planner.architecture.modules import Module
from planner.architecture.record import Activation, Kind, NormKind, Position

FAMILIES = tuple(sorted(module.name for module in pkgutil.iter_modules(families.__path__)))
"""Module names of the families; none is imported before a model asks for it."""


def _unchanged(size: Dimensions) -> Dimensions:
    return size


class Family(NamedTuple):
    """One model_type; what a config.json leaves out has the default of transformers.

    modules              every parameter of a model of these dimensions
    resolve              what the options change in the dimensions
    aliases              the family's own names of fields
    options              further fields that fix shapes, with their defaults
    same_as              options that are another field where the config does not say (0)
    tied                 whether the head shares the embedding, where the config does not say
    attention_bias       likewise, for the biases of the attention
    counts_positions     whether max_position_embeddings is the length of a table
    reserved_positions   rows of that table that belong to no token
    parallel, qk_norm    as in Architecture, or the option that decides it
    writes_scores        as in Architecture: transformers has no other attention for the family
    soft_caps            scores and logits are capped, but for those whose cap the config nulls
    expansion            hidden sizes in intermediate_size, where the config does not say
    sliding_layers       how many layers have the window, given the config and the number of layers
    score_dropout        the field with the rate of dropout of attention's scores in training, and
                         that rate where the config does not say
    stream_dropout       likewise of what a block's attention and MLP add to the stream
    inner_dropout        likewise of what an MLP's last linear reads
    image                the input is patches of an image, not tokens
    unbuilt              as in Architecture
    """

    kind: Kind
    norm: NormKind
    activation: Activation
    position: Position
    modules: Callable[[Dimensions], Iterable[Module]]
    resolve: Callable[[Dimensions], Dimensions] = _unchanged
    aliases: Mapping[str, str] = {}
    options: Mapping[str, bool | int | str] = {}
    same_as: Mapping[str, str] = {}
    tied: bool = True
    attention_bias: bool = False
    counts_positions: bool = False
    reserved_positions: int = 0
    parallel: bool | str = False
    qk_norm: bool | str = False
    writes_scores: bool = False
    soft_caps: bool = False
    expansion: int = 0
    activation_field: str = "hidden_act"
    window_field: str = "sliding_window"
    sliding_layers: Callable[[Mapping[str, object], int], int] | None = None
    score_dropout: tuple[str, float] = ("attention_dropout", 0.0)
    stream_dropout: tuple[str, float] = ("hidden_dropout", 0.0)
    inner_dropout: tuple[str, float] = ("activation_dropout", 0.0)
    image: bool = False
    unbuilt: str = ""


def family(model_type: str) -> Family | None:
    """The declaration of a model_type, None where there is none."""
    name = model_type.replace("-", "_")
    if name not in FAMILIES:
        return None
    module = importlib.import_module(f"planner.architecture.families.{name}")
    found: Family = module.FAMILY
    return found
