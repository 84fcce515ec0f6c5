"""A family declares how one model_type is read: names of its fields, defaults and modules."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from planner.architecture import families
from planner.architecture.dimensions import Dimensions
from planner.architecture.modules import Module
from planner.architecture.record import Activation, Kind, NormKind, Position

FAMILIES = tuple(sorted(module.name for module in pkgutil.iter_modules(families.__path__)))
"""Module names of the families; none is imported before a model asks for it."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model_type; what a config.json leaves out has the default of transformers.

    modules              every parameter of a model of these dimensions
    aliases              the family's own names of the common fields
    options              further fields that fix shapes, with their defaults
    tied                 whether the head shares the embedding, where the config does not say
    parallel, qk_norm    as in Architecture, or the option that decides it
    expansion            hidden sizes in intermediate_size, where the config does not say
    position_offset      rows of the table of positions that no token uses (negative), or that it
                         has beyond the longest input (positive)
    sliding_layers       how many of so many layers have the config's sliding window
    image                the input is patches of an image, not tokens
    """

    kind: Kind
    norm: NormKind
    activation: Activation
    position: Position
    modules: Callable[[Dimensions], Iterable[Module]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, bool | int | str] = field(default_factory=dict)
    tied: bool = True
    parallel: bool | str = False
    qk_norm: bool | str = False
    activation_field: str = "hidden_act"
    expansion: int = 0
    position_offset: int = 0
    sliding_layers: Callable[[int], int] | None = None
    image: bool = False


def family(model_type: str) -> Family | None:
    """The declaration of a model_type, None where there is none."""
    name = model_type.replace("-", "_")
    if name not in FAMILIES:
        return None
    module = importlib.import_module(f"planner.architecture.families.{name}")
    found: Family = module.FAMILY
    return found
