"""Adapter -> the parts the fused op applies: y = g * (W (l * x)) + e * (B (d * (A x))) + c + bias.

The method's own update says what the parts are, so a new method needs nothing here.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add, mul

import numpy as np

from compiler.adapter import Adapter, classifier_site, model_tensors, target_tensors
from compiler.row import VECTORS, Floats, LoweredSite
from planner.errors import IncompatibleError
from planner.method import Site
from planner.method import method as method_named
from planner.update import Dense, InputScale, LowRank, OutputScale, OutputShift, Update


def lower(
    adapter: Adapter,
    base_weight: Callable[[str], Floats],
    base_bias: Callable[[str], Floats | None],
) -> dict[str, LoweredSite]:
    """The parts of each target; weights are asked for by target name, and only where needed.

    Raises IncompatibleError for a method that replaces the base model's weights.
    """
    method = method_named(adapter.method)
    if "unmerged" not in method.serves:
        raise IncompatibleError(
            f"{method.title} cannot be served unmerged: it changes the base model itself",
            hint="export the tenant merged",
        )
    shared = _keyed(model_tensors(adapter))
    found = {}
    for target in adapter.targets:
        site = Site(
            target=target,
            weight=base_weight(target.name) if method.needs_weight == "every_step" else None,
            bias=base_bias(target.name),
            scaling=adapter.scalings[target.name],
        )
        with np.errstate(over="ignore", invalid="ignore"):  # refused below, in words
            update = method.update(target_tensors(adapter, target), site)
            found[target.name] = lower_update(update, shared)
        _check_finite(target.name, found[target.name])
    head = classifier_site(adapter)
    if head is not None:
        found[head] = _lower_classifier(adapter, head, len(base_weight(head)))
    return found


def lower_update(update: Update, shared: Mapping[str, Floats] | None = None) -> LoweredSite:
    """The parts of one target; `shared` holds the tensors of the whole model by a unique key."""
    if any(isinstance(part, Dense) for part in update):
        raise IncompatibleError("an update that replaces a whole weight cannot be served unmerged")
    pairs = [part for part in update if isinstance(part, LowRank)]
    return replace(
        _pair(pairs, shared or {}),
        output_scale=_combined(mul, [p.scale for p in update if isinstance(p, OutputScale)]),
        input_scale=_combined(mul, [p.scale for p in update if isinstance(p, InputScale)]),
        output_shift=_combined(add, [p.shift for p in update if isinstance(p, OutputShift)]),
    )


def _check_finite(target: str, parts: LoweredSite) -> None:
    """Finite tensors and scalings may still overflow when they are multiplied."""
    for name in ("a", "b", *VECTORS):
        part = getattr(parts, name)
        if part is not None and not np.isfinite(part).all():
            raise IncompatibleError(f"the adapter's update of '{target}' is too large for float32")


def _pair(pairs: Sequence[LowRank], shared: Mapping[str, Floats]) -> LoweredSite:
    """One pair that does what all do: the shared one as it is, else ranks added, scales in B."""
    if not pairs:
        return LoweredSite()
    first = pairs[0]
    shared_a, shared_b = _key(shared, first.a), _key(shared, first.b)
    if len(pairs) == 1 and shared_a is not None and shared_b is not None:
        return LoweredSite(
            a=first.a,
            b=first.b,
            latent_scale=first.latent_scale,
            pair_scale=first.output_scale,
            shared_a=shared_a,
            shared_b=shared_b,
        )
    return LoweredSite(
        a=np.concatenate([pair.a for pair in pairs]).astype(np.float32, copy=False),
        b=np.concatenate([_scaled_b(pair) for pair in pairs], axis=1),
    )


def _scaled_b(pair: LowRank) -> Floats:
    b = np.asarray(pair.b, np.float32)
    if pair.latent_scale is not None:
        b = b * pair.latent_scale
    return b if pair.output_scale is None else b * pair.output_scale[:, None]


def _combined(
    operator: Callable[[Floats, Floats], Floats], parts: Iterable[Floats]
) -> Floats | None:
    found = list(parts)
    return reduce(operator, found).astype(np.float32, copy=False) if found else None


def _keyed(tensors: Mapping[str, Floats]) -> dict[str, Floats]:
    """Under a digest of their contents: tenants share what is equal, whoever drew it."""
    digests = {name: hashlib.sha256(tensor.tobytes()) for name, tensor in tensors.items()}
    return {f"{name}.{digests[name].hexdigest()[:32]}": tensor for name, tensor in tensors.items()}


def _key(shared: Mapping[str, Floats], part: Floats) -> str | None:
    """The key of the tensor whose leading rows and columns the part is, in the same memory."""
    for key, tensor in shared.items():
        if part.ctypes.data == tensor.ctypes.data and part.strides == tensor.strides:
            return key
    return None


def _lower_classifier(adapter: Adapter, site: str, labels_max: int) -> LoweredSite:
    """A tenant's own head [labels, in] on a base head of zeros [labels_max, in]."""
    weight = adapter.tensors[f"{site}.weight"]
    bias = adapter.tensors.get(f"{site}.bias")
    labels = len(weight)
    if labels > labels_max:
        raise IncompatibleError(
            f"the adapter has {labels} labels, but the artifact's head has room for {labels_max}"
        )
    shift = None if bias is None else np.pad(bias, (0, labels_max - labels))
    return LoweredSite(a=weight, b=np.eye(labels_max, labels, dtype=np.float32), output_shift=shift)
