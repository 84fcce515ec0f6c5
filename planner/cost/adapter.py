"""An adapter's exact counts and bytes over all its targets."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from planner.cost.trace import FLOAT_BYTES, linear_cost
from planner.method import Method, Target, TensorSpec, model_dimensions, target_dimensions

DIRECTORY_BYTES = 12 * 8
"""One site's entry in a row's directory: twelve 64-bit integers."""

INPUT_OF_ROLE = {
    "attention.query": "attention",
    "attention.key": "attention",
    "attention.value": "attention",
    "linear": "attention",
    "attention.output": "attended",
    "mlp.gate": "mlp",
    "mlp.up": "mlp",
    "mlp.down": "inner",
}
"""Linears of one input keep it once; "attended" is kept by the attention itself."""


class TargetSet(NamedTuple):
    """Linears counted by role and shape; `kinds` holds one nameless target of each kind."""

    kinds: tuple[tuple[Target, int], ...]

    @property
    def site_count(self) -> int:
        return sum(copies for _, copies in self.kinds)

    @property
    def widest(self) -> dict[str, int]:
        """The dimensions that a tensor of the whole model must cover."""
        return model_dimensions(tuple(target for target, _ in self.kinds))

    @property
    def smallest_side(self) -> int:
        return min(min(t.out_features, t.in_features) for t, _ in self.kinds)

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(target.role for target, _ in self.kinds)


def target_set(targets: tuple[Target, ...]) -> TargetSet:
    counted = Counter((t.role, t.out_features, t.in_features) for t in targets)
    kinds = tuple((Target("", *kind), copies) for kind, copies in counted.items())
    return TargetSet(kinds)


class AdapterCost(NamedTuple):
    """Of one method, rank and set of targets; elements and multiplications are per token.

    Of `saved_elements`, `shared_inputs` are inputs of adapted linears, each once for all that keep
    it, and `inner_inputs` of those the MLP's last; `own_inputs` would be kept if every adapted
    linear kept a copy of its own.
    """

    trainable_parameters: int
    stored_bytes: int
    shared_bytes: int
    row_bytes: int
    multiplications: int
    saved_elements: int
    shared_inputs: int = 0
    own_inputs: int = 0
    inner_inputs: int = 0


def adapter_cost(method: Method, rank: int | None, targets: TargetSet) -> AdapterCost:
    """Exact for counts and bytes; `targets` are the linears the method really adapts."""
    inputs: dict[str, int] = {}
    widest = targets.widest
    multiplications = saved = row_bytes = own_inputs = 0
    for target, copies in targets.kinds:
        cost = linear_cost(method, rank, target, widest)
        multiplications += copies * cost.multiplications
        saved += copies * cost.saved_elements
        row_bytes += copies * cost.row_bytes
        own_inputs += copies * target.in_features if cost.saves_input else 0
        source = INPUT_OF_ROLE.get(target.role, target.role)
        if cost.saves_input and source != "attended":
            inputs[source] = max(inputs.get(source, 0), copies * target.in_features)
    trainable, stored, shared = _numbers(method, rank, targets)
    return AdapterCost(
        trainable_parameters=trainable,
        stored_bytes=FLOAT_BYTES * stored,
        shared_bytes=FLOAT_BYTES * shared,
        row_bytes=row_bytes + DIRECTORY_BYTES * targets.site_count,
        multiplications=multiplications,
        saved_elements=saved + sum(inputs.values()),
        shared_inputs=sum(inputs.values()),
        own_inputs=own_inputs,
        inner_inputs=inputs.get("inner", 0),
    )


def _numbers(method: Method, rank: int | None, targets: TargetSet) -> tuple[int, int, int]:
    """How many numbers are trained, stored (no seed regenerates them) and shared by tenants."""
    trained = stored = shared = 0
    for spec, dimensions, copies in _owned(method, rank, targets):
        count = copies * math.prod(spec.resolve(dimensions))
        trained += count if spec.trainable else 0
        stored += 0 if spec.seeded else count
        shared += count if spec.scope == "model" and not spec.trainable else 0
    return trained, stored, shared


def _owned(
    method: Method, rank: int | None, targets: TargetSet
) -> list[tuple[TensorSpec, Mapping[str, int], int]]:
    """Every tensor of the method with its dimensions and how often it occurs."""
    widest = targets.widest
    limits = {"rank": rank or 0, **widest}
    owned: list[tuple[TensorSpec, Mapping[str, int], int]] = [
        (spec, limits, 1) for spec in method.model_tensors()
    ]
    for target, copies in targets.kinds:
        dimensions = target_dimensions(target, rank) | widest
        owned += [(spec, dimensions, copies) for spec in method.tensors_for(target.role)]
    return owned
