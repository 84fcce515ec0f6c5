"""A module with all that its inference capture needs: example inputs, and names for every axis."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

Axis = str | int
"""A name for a size that may change from run to run, or the size that may not."""


@dataclass(frozen=True)
class Port:
    """One input or output of the ONNX graph."""

    name: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Form:
    """`example` holds the positional arguments of `forward`, tensors in nested lists and tuples;
    `inputs` and `outputs` name the tensors in flattened order. Sizes that share an axis name are
    equal in every run; an example's dynamic sizes are at least 2, which torch.export needs.
    """

    module: nn.Module
    example: tuple[Any, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    repeated: "Repeated | None" = None


@dataclass(frozen=True)
class Repeated:
    """Layers that are alike but for their number: `short` is the form with the first three.

    Layer i's parameters start with "<path>.<i>.", its ports with "<port>.<i>.".
    """

    path: str
    count: int
    short: Form
    ports: tuple[str, ...] = ()

    def layer_of(self, name: str) -> int:
        """The layer that a parameter or port belongs to, or -1."""
        for prefix in (self.path, *self.ports):
            number = name.removeprefix(f"{prefix}.").split(".")[0]
            if name.startswith(f"{prefix}.{number}.") and number.isdecimal():
                return int(number)
        return -1

    def renamed(self, name: str, layer: int) -> str:
        """The name of the same thing in another layer."""
        number = f".{self.layer_of(name)}."
        prefix = next(p for p in (self.path, *self.ports) if name.startswith(p + number))
        return f"{prefix}.{layer}.{name.removeprefix(prefix + number)}"


Module = TypeVar("Module", bound=nn.Module)

SHORT = 3
"""Layers in a short form: a first one, and two to compare."""


def shortened(module: Module, path: str) -> Module:
    """The module with the first layers of the list at `path` only; the parameters are shared."""
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    head, _, rest = path.partition(".")
    child = module.get_submodule(head)
    if rest:
        clone._modules[head] = shortened(child, rest)
    else:
        clone._modules[head] = nn.ModuleList(list(child.children())[:SHORT])
    return clone


def layer_list(module: nn.Module, count: int) -> str | None:
    """The path of the only list of `count` modules, when there are enough to be worth it."""
    found = [
        name
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    return found[0] if len(found) == 1 and count > SHORT + 1 else None


def dynamic_shapes(form: Form) -> Any:  # noqa: ANN401  (torch.export's own nested form)
    """The dynamic axes in the nesting of `example`, as torch.export takes them."""
    leaves, structure = pytree.tree_flatten(form.example)
    if len(leaves) != len(form.inputs):
        raise ValueError(f"{len(leaves)} example tensors, but {len(form.inputs)} input names")
    shapes = [
        {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(port.axes) if isinstance(axis, str)}
        for port in form.inputs
    ]
    return pytree.tree_unflatten(shapes, structure)


def parameter_names(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every name of each stored tensor, by its first name: tied weights have several."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, tensor in _stored(module):
        names.setdefault(first.setdefault(id(tensor), name), []).append(name)
    return {name: tuple(aliases) for name, aliases in names.items()}


def _stored(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor):
            yield name, tensor
