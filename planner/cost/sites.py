"""Where a method's tensors and costs occur in a model, and the lengths that hold there."""

from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from planner.architecture import Architecture
from planner.method import (
    Dimensions,
    Method,
    Scope,
    Target,
    TensorSpec,
    model_dimensions,
    target_dimensions,
)


class TargetSet(NamedTuple):
    """Linears counted by role and shape; `kinds` holds one nameless target of each kind."""

    kinds: tuple[tuple[Target, int], ...]

    @property
    def site_count(self) -> int:
        return sum([copies for _, copies in self.kinds])

    @property
    def smallest_side(self) -> int:
        return min([min(t.out_features, t.in_features) for t, _ in self.kinds])

    @property
    def roles(self) -> frozenset[str]:
        return frozenset([target.role for target, _ in self.kinds])


def target_set(targets: tuple[Target, ...]) -> TargetSet:
    counted = Counter((t.role, t.out_features, t.in_features) for t in targets)
    kinds = tuple((Target("", *kind), copies) for kind, copies in counted.items())
    return TargetSet(kinds)


class Sites(NamedTuple):
    """Equal sites: their linear if they are linears, their lengths, how many there are, and how
    many of them one token passes.
    """

    target: Target | None
    lengths: Dimensions
    copies: int
    passed: int


def model_lengths(
    method: Method, rank: int | None, targets: TargetSet, shape: Architecture
) -> dict[str, int]:
    """The lengths of the model and of the method; those of one site come on top."""
    return _lengths_but_rank(targets, shape) | {"rank": rank or 0, method.size: rank or 0}


@lru_cache(maxsize=256)
def _lengths_but_rank(targets: TargetSet, shape: Architecture) -> dict[str, int]:
    return {
        "hidden": shape.hidden,
        "layers": shape.layers,
        "blocks": shape.layers + shape.encoder_layers,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "kv": shape.kv_heads * shape.head_dim,
        "intermediate": shape.intermediate,
        "vocab": shape.vocab,
        "stacks": 2 if shape.kind == "encoder_decoder" else 1,
        **model_dimensions(tuple(target for target, _ in targets.kinds)),
    }


def sites(
    scope: Scope, lengths: dict[str, int], targets: TargetSet, shape: Architecture
) -> list[Sites]:
    """Everything that occurs as often as the scope says."""
    if scope == "norm":
        norms = Counter((norm.width, norm.bias) for norm in shape.norms)
        return [
            Sites(None, lengths | {"width": width, "bias": bias}, copies, copies)
            for (width, bias), copies in norms.items()
        ]
    if scope in ("layer", "model"):
        copies = lengths["blocks"] if scope == "layer" else 1
        return [Sites(None, lengths, copies, copies)]
    found = []
    for target, copies in targets.kinds:
        passed = copies
        if target.role.startswith("experts."):
            passed = copies * shape.experts_per_token // shape.experts
        own = lengths | target_dimensions(target, lengths["rank"])
        found.append(Sites(target, own, copies if scope == "target" else 1, passed))
    return found


def owns(spec: TensorSpec, place: Sites) -> bool:
    """Whether a tensor of that kind exists at that place."""
    if spec.roles is not None and (place.target is None or place.target.role not in spec.roles):
        return False
    return spec.where is None or spec.where(place.lengths)
