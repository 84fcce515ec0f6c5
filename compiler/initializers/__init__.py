"""Starting values of a method's tensors: one file per rule, the folder listing is the registry.

A rule is a function `initialize(start: Start) -> Tensor` in the module that carries its name.
"""

import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import torch

from planner.errors import ParetuneError
from planner.method import Method, Target, TensorSpec, model_dimensions, target_dimensions

Weights = Callable[[str], torch.Tensor]
"""The dense frozen weight [out, in] of the target of that name, in any floating dtype."""


@dataclass(frozen=True)
class TargetWeight:
    """One target's dense weight and its singular vectors, both computed once and on demand."""

    target: Target
    weights: Weights

    @cached_property
    def dense(self) -> torch.Tensor:
        """[out, in], fp32."""
        return self.weights(self.target.name).detach().to(torch.float32)

    @cached_property
    def singular(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """U [out, k], S [k], V^T [k, in] of the weight in fp32, k = min(out, in), S descending.

        The smaller Gram matrix in fp64 gives the leading directions at least as exactly as an fp32
        SVD, in a third of the time. The sign of each pair, which the decomposition leaves open,
        makes the entry of V^T with the greatest magnitude positive.
        """
        weight = self.dense.to(torch.float64)
        tall = weight.shape[0] >= weight.shape[1]
        narrow = weight if tall else weight.T
        squares, vectors = torch.linalg.eigh(narrow.T @ narrow)
        s, vectors = squares.flip(0).clamp_min(0.0).sqrt(), vectors.flip(1)
        # W's null directions have no partner on the other side: zero, not 0 / 0.
        partners = (narrow @ vectors) * torch.where(s > 0, 1.0 / s, 0.0)
        u, vt = (partners, vectors.T) if tall else (vectors, partners.T)
        peak = vt.gather(1, vt.abs().argmax(1, keepdim=True))
        sign = torch.where(peak < 0, -1.0, 1.0)
        return (u * sign.T).float(), s.float(), (vt * sign).float()


@dataclass(frozen=True)
class Start:
    """What a rule may look at; `weight` is None for a tensor of the whole model."""

    method: Method
    spec: TensorSpec
    dimensions: Mapping[str, int]
    rank: int
    scaling: float
    seed: int
    key: str
    weight: TargetWeight | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.resolve(self.dimensions)

    def generator(self) -> torch.Generator:
        """This tensor's own stream of the seed: other tensors and tenants do not shift it."""
        digest = hashlib.sha256(f"{self.seed}:{self.key}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def target_weight(self) -> TargetWeight:
        if self.weight is None:
            raise ParetuneError(
                f"tensor '{self.spec.name}' of method '{self.method.name}' belongs to the model; "
                f"the initializer '{self.spec.initializer}' needs a target's weight"
            )
        return self.weight


@cache
def rules() -> dict[str, Callable[[Start], torch.Tensor]]:
    """Every rule, by the name of its file."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").initialize for name in names}


def initialize(
    method: Method,
    targets: tuple[Target, ...],
    weights: Weights,
    rank: int | None,
    scaling: float,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Every tensor the method owns, fp32 on the CPU: "<target>.<tensor>", "<tensor>" of the model.

    `weights` is called only for targets whose rules read the weight, once each.
    """
    tensors: dict[str, torch.Tensor] = {}
    for target in targets:
        tensors |= initialize_target(method, target, targets, weights, rank, scaling, seed)
    for spec in method.model_tensors():
        start = Start(
            method=method,
            spec=spec,
            dimensions=model_dimensions(targets) | {"rank": rank or 0},
            rank=rank or 0,
            scaling=scaling,
            seed=seed,
            key=spec.name,
            weight=None,
        )
        tensors[start.key] = _value(start)
    return tensors


def initialize_target(
    method: Method,
    target: Target,
    targets: tuple[Target, ...],
    weights: Weights,
    rank: int | None,
    scaling: float,
    seed: int,
) -> dict[str, torch.Tensor]:
    """The tensors of one target; `targets` are all of the model's, for its widest dimensions."""
    weight = TargetWeight(target, weights)
    tensors = {}
    for spec in method.tensors_for(target.role):
        start = Start(
            method=method,
            spec=spec,
            dimensions=model_dimensions(targets) | target_dimensions(target, rank),
            rank=rank or 0,
            scaling=scaling,
            seed=seed,
            key=f"{target.name}.{spec.name}",
            weight=weight,
        )
        tensors[start.key] = _value(start)
    return tensors


def _value(start: Start) -> torch.Tensor:
    known = rules()
    if start.spec.initializer not in known:
        raise ParetuneError(
            f"unknown initializer '{start.spec.initializer}' of tensor '{start.spec.name}' in "
            f"method '{start.method.name}'; initializers are {', '.join(known)}"
        )
    value = known[start.spec.initializer](start)
    if tuple(value.shape) != start.shape:
        raise ParetuneError(
            f"initializer '{start.spec.initializer}' gave '{start.key}' the shape "
            f"{list(value.shape)}; the method declares {list(start.shape)}"
        )
    return value.detach().to("cpu", torch.float32).contiguous()
