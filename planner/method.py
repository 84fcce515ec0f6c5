"""A method is a record: the tensors it owns, the update they make, and what else it asks for."""

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Literal

import planner.methods
from planner.errors import UsageError
from planner.update import Tensor, Update

Dimension = Literal["out", "in", "rank", "max_out", "max_in"] | int

ATTENTION = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.qkv",
    "attention.output",
)
MLP = ("mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down")
EXPERTS = ("experts.gate", "experts.up", "experts.down")
"""Not among all linears: a model keeps its routed experts in one tensor, which is no linear."""
ROLES = (*ATTENTION, *MLP, *EXPERTS, "router", "linear", "head", "classifier", "embedding")
ALL_LINEAR = (*ATTENTION, *MLP, "linear")
"""Every linear but the output head and the classifier, as PEFT's "all-linear"."""


@dataclass(frozen=True)
class Target:
    """One linear of the model that a method may adapt."""

    name: str
    role: str
    out_features: int
    in_features: int


@dataclass(frozen=True)
class Site:
    """What an update may look at: the target, its frozen weight [out, in] and bias [out]."""

    target: Target
    weight: Tensor
    bias: Tensor | None
    scaling: float


@dataclass(frozen=True)
class TensorSpec:
    """A tensor a method owns, once per target or once per model.

    `initializer` names a rule of compiler/initializers; `seeded` tensors are regenerated from the
    seed and need not be stored; `roles` limits the tensor to targets of those roles.
    """

    name: str
    shape: tuple[Dimension, ...]
    initializer: str
    initial_value: float | None = None
    trainable: bool = True
    scope: Literal["target", "model"] = "target"
    seeded: bool = False
    learning_rate_multiplier: float = 1.0
    roles: tuple[str, ...] | None = None
    peft_key: str | None = None

    def resolve(self, dimensions: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else dimensions[d] for d in self.shape)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One PEFT method; see planner/methods for one file each.

    `needs_weight` says when the dense base weight is read. `peft_config` holds the fields that
    tell PEFT which method a file is. A method with `trains_base` trains the model's own parameters
    and can only be served merged.
    """

    name: str
    title: str
    paper: str | None
    tensors: tuple[TensorSpec, ...]
    update: Callable[[Mapping[str, Tensor], Site], Update]
    scaling: Callable[[int, float], float] | None
    ranks: tuple[int, ...]
    default_alpha: Callable[[int], float] | None
    targets: tuple[str, ...] = ALL_LINEAR
    formats: tuple[str, ...] = ("fp32", "bf16", "nf4")
    needs_weight: Literal["never", "at_initialization", "every_step"] = "never"
    trains_base: bool = False
    optimizer: Literal["adamw", "paged_adamw8bit"] = "adamw"
    learning_rate: float
    serves: tuple[Literal["unmerged", "merged"], ...] = ("unmerged", "merged")
    peft_config: Mapping[str, object] | None = field(default=None)

    def tensors_for(self, role: str) -> tuple[TensorSpec, ...]:
        """The tensors owned by each target of that role."""
        return tuple(
            t for t in self.tensors if t.scope == "target" and (t.roles is None or role in t.roles)
        )

    def model_tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors owned once for the whole model."""
        return tuple(t for t in self.tensors if t.scope == "model")

    def trainable_parameters(self, targets: tuple[Target, ...], rank: int | None) -> int:
        """Exact count of the trainable numbers of the method's own tensors."""
        limits = model_dimensions(targets)
        owned = [
            (spec, target_dimensions(target, rank) | limits)
            for target in targets
            for spec in self.tensors_for(target.role)
        ]
        owned += [(spec, {"rank": rank or 0} | limits) for spec in self.model_tensors()]
        return sum(math.prod(spec.resolve(dims)) for spec, dims in owned if spec.trainable)


def target_dimensions(target: Target, rank: int | None) -> dict[str, int]:
    return {"out": target.out_features, "in": target.in_features, "rank": rank or 0}


def model_dimensions(targets: tuple[Target, ...]) -> dict[str, int]:
    """The widest output and input among the targets, which model-scoped tensors must cover."""
    return {
        "max_out": max((t.out_features for t in targets), default=0),
        "max_in": max((t.in_features for t in targets), default=0),
    }


@cache
def methods() -> dict[str, Method]:
    """Every method, by name, in the order of the folder listing."""
    names = sorted(module.name for module in pkgutil.iter_modules(planner.methods.__path__))
    found = [importlib.import_module(f"planner.methods.{name}").METHOD for name in names]
    return {method.name: method for method in found}


def method(name: str) -> Method:
    """The method of that name; raises UsageError with the nearest name."""
    known = methods()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise UsageError(
            f"unknown method '{name}'; methods are {', '.join(known)}",
            hint=f"did you mean '{near[0]}'?" if near else None,
        )
    return known[name]
