"""A method is a record: the tensors it owns, the update they make, and what else it asks for."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple

import planner.methods
from planner.errors import ParetuneError, UsageError, did_you_mean
from planner.update import Tensor, Update

Dimensions = Mapping[str, int]
"""Lengths by name.

Of a target out, in, narrow and wide (the smaller and the larger of the two); of a norm width and
bias (0 or 1); of all targets max_out, max_in, max_narrow, max_wide; of the model hidden, layers,
blocks (of both stacks), heads, kv_heads, head_dim, kv (their product), intermediate, vocab, stacks
(2 with an encoder and a decoder); of the method the size it is asked for, under its own name.
"""
Dimension = str | int | Callable[[Dimensions], int]
Scope = Literal["target", "role", "norm", "layer", "model"]
"""How often something occurs: per linear, once for all linears of one role and shape, per norm,
per block, once."""

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


class Target(NamedTuple):
    """One linear of the model that a method may adapt."""

    name: str
    role: str
    out_features: int
    in_features: int


class Site(NamedTuple):
    """What an update may look at: the target, its frozen weight [out, in] and bias [out]."""

    target: Target
    weight: Tensor
    bias: Tensor | None
    scaling: float


class TensorSpec(NamedTuple):
    """A tensor a method owns, as often as its scope says.

    `initializer` names a rule of compiler/initializers; `seeded` tensors are regenerated from the
    seed and need not be stored, `training_only` ones are used up in training; `roles` and `where`
    limit the tensor to some sites, `share` to a fraction of them that only training finds.
    """

    name: str
    shape: tuple[Dimension, ...]
    initializer: str
    initial_value: float | None = None
    trainable: bool = True
    scope: Scope = "target"
    seeded: bool = False
    training_only: bool = False
    learning_rate_multiplier: float = 1.0
    roles: tuple[str, ...] | None = None
    where: Callable[[Dimensions], bool] | None = None
    share: float = 1.0
    peft_key: str | None = None

    def resolve(self, dimensions: Dimensions) -> tuple[int, ...]:
        lengths = []
        for side in self.shape:
            if isinstance(side, str):
                lengths.append(dimensions[side])
            else:
                lengths.append(side if isinstance(side, int) else side(dimensions))
        return tuple(lengths)


class Cost(NamedTuple):
    """Declared by a method that the algebra of updates cannot say, for one site, as PEFT does it.

    Per token: multiplications, and elements kept for the backward pass besides the site's input.
    Per pass, whatever the tokens: multiplications, elements kept for the backward pass, and those
    live only while the site computes. `row_elements` is what a tenant brings when served unmerged;
    None where it is the pair that the method converts to, or where there is no such form.
    """

    multiplications: int = 0
    saved_elements: int = 0
    saves_input: bool = False
    row_elements: int | None = None
    pass_multiplications: int = 0
    pass_elements: int = 0
    workspace_elements: int = 0


class Conversion(NamedTuple):
    """To plain LoRA, which every runtime loads: the pair's rank, and whether nothing is lost."""

    rank: Callable[[Dimensions], int]
    exact: bool = True


SAME_RANK = Conversion(lambda d: d["rank"])
TRUNCATED = Conversion(lambda d: min(64, d["narrow"]), exact=False)
"""Singular vectors of the merged difference; 64 of them are a choice, not a bound."""


def outside_the_algebra(tensors: Mapping[str, Tensor], site: Site) -> Update:
    """The update of a method that declares its cost instead."""
    raise ParetuneError(f"the update of '{site.target.name}' is outside the algebra of updates")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Method:
    """One PEFT method; see planner/methods for one file each.

    `builds` says whether the compiler can train and serve it yet. `ranks` are the sizes to weigh,
    and `size` is what they count. `needs_weight` says when the dense base weight is read.
    `drops_input` says whether a dropout of the input is among its options.
    `costs` are declared where `update` cannot say what happens, by scope. `misfit` says why a
    target cannot be adapted at that size. `adds_tokens` are positions of the input, or of the keys
    and values only. `forward_passes` counts those of the base. `optimizer_elements` are numbers an
    optimizer keeps per linear of the base, where they are not two per number.
    `peft_config` holds the fields that tell PEFT which method a file is. A method with
    `trains_base` trains the model's own parameters and can only be served merged.
    """

    name: str
    title: str
    paper: str | None
    builds: bool = False
    tensors: tuple[TensorSpec, ...]
    update: Callable[[Mapping[str, Tensor], Site], Update] = outside_the_algebra
    costs: Mapping[Scope, Callable[[Dimensions], Cost]] = field(default_factory=dict)
    drops_input: bool = False
    scaling: Callable[[int, float], float] | None = None
    ranks: tuple[int, ...] = ()
    size: str = "rank"
    misfit: Callable[[Dimensions], str | None] | None = None
    default_alpha: Callable[[int], float] | None = None
    targets: tuple[str, ...] = ALL_LINEAR
    formats: tuple[str, ...] = ("fp32", "bf16", "nf4")
    needs_weight: Literal["never", "at_initialization", "every_step"] = "never"
    trains_base: bool = False
    optimizer: Literal["adamw", "paged_adamw8bit", "galore"] = "adamw"
    optimizer_elements: Callable[[Dimensions], int] | None = None
    learning_rate: float
    adds_tokens: Literal["input", "cache"] | None = None
    forward_passes: int = 1
    serves: tuple[Literal["unmerged", "merged"], ...] = ("unmerged", "merged")
    converts_to: Conversion | None = None
    peft_config: Mapping[str, object] | None = None

    def sized(self, size: int) -> str:
        """The size in words: "rank 16", "virtual tokens 20"."""
        return f"{self.size.replace('_', ' ')} {size}"

    def tensors_for(self, role: str) -> tuple[TensorSpec, ...]:
        """The tensors owned by each target of that role."""
        return tuple(
            t for t in self.tensors if t.scope == "target" and (t.roles is None or role in t.roles)
        )

    def model_tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors owned once for the whole model."""
        return tuple(t for t in self.tensors if t.scope == "model")


def target_dimensions(target: Target, rank: int | None) -> dict[str, int]:
    out, in_ = target.out_features, target.in_features
    return {
        "out": out,
        "in": in_,
        "narrow": min(out, in_),
        "wide": max(out, in_),
        "rank": rank or 0,
    }


def model_dimensions(targets: tuple[Target, ...]) -> dict[str, int]:
    """The widest sides among the targets, which tensors of the whole model must cover."""
    sides = [(t.out_features, t.in_features) for t in targets] or [(0, 0)]
    return {
        "max_out": max(out for out, _ in sides),
        "max_in": max(in_ for _, in_ in sides),
        "max_narrow": max(min(pair) for pair in sides),
        "max_wide": max(max(pair) for pair in sides),
    }


@cache
def methods() -> dict[str, Method]:
    """Every method, by name, in alphabetical order."""
    names = sorted(module.name for module in pkgutil.iter_modules(planner.methods.__path__))
    found = [importlib.import_module(f"planner.methods.{name}").METHOD for name in names]
    return {method.name: method for method in found}


@cache
def buildable() -> dict[str, Method]:
    """The methods that the compiler can train and serve."""
    return {name: found for name, found in methods().items() if found.builds}


def method(name: str) -> Method:
    """The method of that name; raises UsageError with the nearest name."""
    known = methods()
    if name not in known:
        raise UsageError(
            f"unknown method '{name}'; methods are {', '.join(known)}",
            hint=did_you_mean(name, known),
        )
    return known[name]


def buildable_method(name: str) -> Method:
    """The method of that name; raises UsageError too where the compiler cannot train it yet."""
    found = method(name)
    if not found.builds:
        raise UsageError(
            f"the compiler does not build the method '{name}' yet",
            hint=f"it builds {', '.join(buildable())}",
        )
    return found
