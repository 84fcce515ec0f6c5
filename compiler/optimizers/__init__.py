"""Optimizers: one file per name a plan may ask for, the folder listing is the registry.

Each module has `build(groups, say) -> torch.optim.Optimizer`; `say` takes one sentence for the
user. A group keeps its `learning_rate_multiplier`, so a schedule sets its rate from the step alone.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from planner.errors import ParetuneError

Say = Callable[[str], None]


def build(
    name: str,
    parameters: Mapping[str, torch.nn.Parameter],
    multipliers: Mapping[str, float],
    weight_decay: float,
    say: Say,
) -> torch.optim.Optimizer:
    """The optimizer of that name over the parameters; absent multipliers are 1."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known:
        raise ParetuneError(f"unknown optimizer '{name}'; optimizers are {', '.join(known)}")
    module = importlib.import_module(f"{__name__}.{name}")
    optimizer: torch.optim.Optimizer = module.build(
        groups(parameters, multipliers, weight_decay), say
    )
    return optimizer


def groups(
    parameters: Mapping[str, torch.nn.Parameter],
    multipliers: Mapping[str, float],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Parameter groups by learning-rate multiplier and weight decay; vectors do not decay.

    A scale that rests at one, such as IA3's [out, 1], is a vector here whatever its shape.
    """
    found: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        is_matrix = sum(size > 1 for size in parameter.shape) > 1
        key = (multipliers.get(name, 1.0), weight_decay if is_matrix else 0.0)
        found.setdefault(key, []).append(parameter)
    return [
        {"params": members, "learning_rate_multiplier": multiplier, "weight_decay": decay}
        for (multiplier, decay), members in found.items()
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Each group learns at `rate` times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["learning_rate_multiplier"]


def export_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """The whole state as tensors under "<parameter>/<entry>"; Python integers become int64 []."""
    tensors: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, parameter in parameters.items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            # 8-bit states share one code table, and a safetensors file shares nothing.
            shared = tensor.data_ptr() in storages
            storages.add(tensor.data_ptr())
            tensors[f"{name}/{entry}"] = tensor.clone() if shared else tensor
    return tensors


def import_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> None:
    """Put an exported state into a freshly built optimizer of the same parameters."""
    for key, value in tensors:
        name, _, entry = key.rpartition("/")
        state = optimizer.state[parameters[name]]
        allocated = state.get(entry)
        if isinstance(allocated, torch.Tensor):
            allocated.copy_(value)
        else:
            state[entry] = _entry(value, parameters[name])


def _entry(value: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor | int:
    if value.ndim == 0 and value.dtype == torch.int64:
        return int(value)
    # A copy of its own: a view of the file's buffer need not be aligned.
    return value.to(parameter.device, copy=True)
