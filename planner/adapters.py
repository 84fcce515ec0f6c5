"""Every adapter of a scenario with its cost and quality, and why a method is left out."""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from planner.architecture import Architecture
from planner.cost.adapter import AdapterCost, TargetSet, adapter_cost, misfit, target_set
from planner.errors import UsageError
from planner.forms import Refusal
from planner.method import (
    ALL_LINEAR,
    MLP,
    ROLES,
    Method,
    Target,
    TensorSpec,
    buildable,
    buildable_method,
    method,
    methods,
)
from planner.quality import (
    UNKNOWN,
    Quality,
    method_quality,
    rank_quality,
    target_quality,
    unranked,
)
from planner.rows import in_bank
from planner.scenario import Scenario
from planner.spec import Pinned

QUERY_VALUE = ("attention.query", "attention.value")


class Adapter(NamedTuple):
    """One method, rank and set of targets; `targets` is how a plan writes the linears."""

    method: Method
    rank: int | None
    targets: tuple[str, ...]
    cost: AdapterCost
    quality: Quality

    def describe(self) -> str:
        rank = ""
        if self.rank:
            is_rank = self.method.size == "rank"
            rank = f" r{self.rank}" if is_rank else f" {self.method.sized(self.rank)}"
        everywhere = self.method.trains_base or not self.targets
        where = "" if everywhere else f" on {'+'.join(self.targets)}"
        return f"{self.method.name}{rank}{where}"


def adapters(
    scenario: Scenario,
    *,
    unbuildable: bool = False,
    promising: Callable[[Method], bool] = lambda _: True,
) -> Iterator[Adapter | Refusal]:
    """Every promising method with its ranks and sets of targets, or why a method is left out."""
    pinned = scenario.spec.pinned
    selected: dict[tuple[str, ...], TargetSet] = {}
    weighed = _methods(pinned.method, unbuildable=unbuildable)
    for name, found in ((n, found) for n, found in weighed.items() if promising(found)):
        quality = method_quality(
            name, scenario.family, scenario.architecture.parameters, scenario.examples
        )
        refused = _lacking(found, pinned)
        if quality is None and pinned.method is None:
            refused = Refusal(name, "evidence", unranked(name))
        if refused is not None:
            yield refused
            continue
        quality = quality or UNKNOWN
        for targets in _target_sets(found, scenario):
            if targets not in selected:
                selected[targets] = target_set(select(targets, scenario.architecture))
            linears = adapted(found, selected[targets])
            if found.targets and not linears.kinds:
                yield Refusal(name, "targets", f"it adapts none of {', '.join(targets)}")
                continue
            for rank in _ranks(found, scenario):
                yield _adapter(scenario, found, rank, targets, linears, quality)


def _lacking(found: Method, pinned: Pinned) -> Refusal | None:
    """What the spec pins is kept, so a method that has nothing of the kind is left out."""
    has = {
        "rank": bool(found.ranks),
        "alpha": found.default_alpha is not None,
        "targets": bool(found.targets) and not found.trains_base,
    }
    for key, there in has.items():
        if getattr(pinned, key) is not None and not there:
            return Refusal(found.name, f"pinned {key}", f"it has no {key} and the spec pins it")
    return None


def _methods(pinned: str | None, *, unbuildable: bool) -> dict[str, Method]:
    if pinned is not None:
        return {pinned: method(pinned) if unbuildable else buildable_method(pinned)}
    return methods() if unbuildable else buildable()


def _adapter(
    scenario: Scenario,
    found: Method,
    rank: int | None,
    targets: tuple[str, ...],
    linears: TargetSet,
    quality: Quality,
) -> Adapter | Refusal:
    if rank is not None and found.scaling is not None and rank > linears.smallest_side:
        side = linears.smallest_side
        reason = f"the smallest side of its targets is {side}"
        return Refusal(f"rank {rank}", "rank", reason)
    unfit = misfit(found, rank, linears, scenario.architecture)
    if unfit is not None:
        return Refusal(f"{found.name} {rank}", "targets", unfit)
    cost = _cost(_kin(found.name), rank, linears, scenario.architecture)
    cost = in_bank(scenario, found, rank, linears, cost)
    quality = quality + rank_quality(
        scenario.family,
        cost.trainable_parameters,
        scenario.data_bits,
        trains_base=found.trains_base,
    )
    adapts_all = linears.roles >= _own_roles(found, scenario.architecture)
    quality = quality + target_quality(linears.roles, adapts_all=adapts_all)
    return Adapter(found, rank, targets, cost, quality)


@lru_cache(maxsize=256)
def _own_roles(found: Method, shape: Architecture) -> frozenset[str]:
    """Those of the model that the method adapts where none are named."""
    present = frozenset(target.role for target in shape.targets) & frozenset(found.targets)
    return frozenset(r for r in present if found.trains_base or found.tensors_for(r))


@lru_cache(maxsize=128)
def _kin(name: str) -> str:
    """A method that costs the same because its tensors have the same shapes in the same update."""
    found = method(name)
    if found.trains_base or not found.builds:
        return name
    tensors = _shapes(found)
    return next(
        other.name
        for other in buildable().values()
        if other.update is found.update and _shapes(other) == tensors
    )


def _shapes(found: Method) -> list[TensorSpec]:
    """Its tensors without how they start and learn."""
    return [
        spec._replace(initializer="", initial_value=None, learning_rate_multiplier=1.0)
        for spec in found.tensors
    ]


@lru_cache(maxsize=4096)
def _cost(name: str, rank: int | None, linears: TargetSet, shape: Architecture) -> AdapterCost:
    """Kept, because relaxing a spec searches the same adapters again."""
    return adapter_cost(method(name), rank, linears, shape)


def _ranks(found: Method, scenario: Scenario) -> tuple[int | None, ...]:
    pinned = scenario.spec.pinned.rank
    if pinned is not None and found.ranks:
        return (pinned,)
    return found.ranks or (None,)


def _target_sets(found: Method, scenario: Scenario) -> tuple[tuple[str, ...], ...]:
    pinned = scenario.spec.pinned.targets
    if pinned is not None and found.targets and not found.trains_base:
        return (pinned,)
    present = {t.role for t in scenario.architecture.targets}
    if found.targets != ALL_LINEAR:
        return (tuple(r for r in found.targets if r in present),)
    if found.trains_base:
        return (("all-linear",),)
    sets = [("all-linear",), QUERY_VALUE, tuple(r for r in MLP if r in present)]
    return tuple(s for s in sets if s == ("all-linear",) or present.issuperset(s))


def select(targets: tuple[str, ...], shape: Architecture) -> tuple[Target, ...]:
    """The linears that roles, "all-linear" or module-name patterns select.

    A pattern is a name, the end of one, or a regular expression. Raises UsageError where it
    matches nothing.
    """
    selected: dict[str, Target] = {}
    for pattern in targets:
        matched = [t for t in shape.targets if _matches(pattern, t)]
        if not matched:
            raise UsageError(
                f"no linear matches the target '{pattern}'; roles are "
                f"{', '.join(dict.fromkeys(t.role for t in shape.targets))}",
                hint=f"name a role, all-linear, or a module such as {shape.targets[0].name}",
            )
        selected.update((t.name, t) for t in matched)
    return tuple(selected.values())


def adapted(found: Method, linears: TargetSet) -> TargetSet:
    """Those of the linears for which the method owns a tensor, or all that it trains itself."""
    if found.trains_base:
        return linears
    return TargetSet(tuple(k for k in linears.kinds if found.tensors_for(k[0].role)))


def _matches(pattern: str, target: Target) -> bool:
    if pattern == "all-linear":
        return target.role in ALL_LINEAR
    if pattern in ROLES:
        return target.role == pattern
    if target.name == pattern or target.name.endswith(f".{pattern}"):
        return True
    try:
        return _compiled(pattern).fullmatch(target.name) is not None
    except re.error as error:
        raise UsageError(f"the target '{pattern}' is no regular expression: {error}") from None


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
