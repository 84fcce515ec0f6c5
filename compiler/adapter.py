"""An adapter: one tenant's trained tensors and what is needed to apply them to the base model.

On disk it is one safetensors file, with everything but the tensors as canonical JSON in its
metadata; the same adapter has the same bytes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, ValidationError

from compiler.artifact import write_durably
from planner.errors import IncompatibleError
from planner.method import Method, Target, model_dimensions, target_dimensions
from planner.method import method as method_named

Floats = npt.NDArray[np.float32]
Template = Literal["chat", "text"]

METADATA = "paretune"


@dataclass(frozen=True, eq=False, kw_only=True)
class Adapter:
    """Tensors are float32: "<target>.<tensor>", "<tensor>" where the whole model owns one.

    A classification adapter also has the weight [labels, in] and bias of a classifier of its own,
    "<site>.weight" and "<site>.bias", the site usually named "classifier". Seeded tensors may be
    absent. `ranks` and `scalings` are the effective ones of each target; `rank` and `alpha` are
    the ones asked for. `labels` are in logit order; `template` says how a plain prompt was dressed
    in training. `base_digest` names the weights it was trained on.
    """

    method: str
    rank: int | None
    alpha: float | None
    targets: tuple[Target, ...]
    ranks: Mapping[str, int]
    scalings: Mapping[str, float]
    tensors: Mapping[str, Floats]
    base_digest: str
    seed: int = 0
    labels: tuple[str, ...] | None = None
    template: Template | None = None


def uniform(
    *,
    method: str,
    rank: int | None,
    alpha: float | None,
    targets: tuple[Target, ...],
    tensors: Mapping[str, Floats],
    base_digest: str,
    seed: int = 0,
    labels: tuple[str, ...] | None = None,
    template: Template | None = None,
) -> Adapter:
    """An adapter whose targets all have the same rank and scaling."""
    return Adapter(
        method=method,
        rank=rank,
        alpha=alpha,
        targets=targets,
        ranks={} if rank is None else {target.name: rank for target in targets},
        scalings={target.name: scaling(method_named(method), rank, alpha) for target in targets},
        tensors=tensors,
        base_digest=base_digest,
        seed=seed,
        labels=labels,
        template=template,
    )


def scaling(method: Method, rank: int | None, alpha: float | None) -> float:
    """The factor on B A: 1 for a method that has none."""
    if method.scaling is None or rank is None or alpha is None:
        return 1.0
    return float(method.scaling(rank, alpha))


def target_tensors(adapter: Adapter, target: Target) -> dict[str, Floats]:
    """What the method's update reads for this target, by the names of its specs."""
    method = method_named(adapter.method)
    own = {
        spec.name: adapter.tensors[f"{target.name}.{spec.name}"]
        for spec in method.tensors_for(target.role)
    }
    return own | model_tensors(adapter)


def model_tensors(adapter: Adapter) -> dict[str, Floats]:
    """The tensors owned by the whole model; raises IncompatibleError when one was left out."""
    names = [spec.name for spec in method_named(adapter.method).model_tensors()]
    missing = [name for name in names if name not in adapter.tensors]
    if missing:
        raise IncompatibleError(
            f"the adapter leaves out {', '.join(missing)}, to be drawn from seed {adapter.seed}",
            hint="import the adapter with `compiler import-adapter`, which draws them",
        )
    return {name: adapter.tensors[name] for name in names}


def classifier_site(adapter: Adapter) -> str | None:
    """The site of the adapter's own classifier: no other tensor is called weight."""
    if method_named(adapter.method).trains_base:
        return None
    heads = (name.removesuffix(".weight") for name in adapter.tensors if name.endswith(".weight"))
    return next(heads, None)


def check(adapter: Adapter) -> None:
    """Raises IncompatibleError unless the tensors are exactly those of the method and targets."""
    method = method_named(adapter.method)
    names = [target.name for target in adapter.targets]
    if len(set(names)) != len(names) or adapter.scalings.keys() != set(names):
        raise IncompatibleError(f"the adapter's targets {names} and scalings do not agree")
    if not all(isfinite(value) for value in adapter.scalings.values()):
        raise IncompatibleError("a scaling of the adapter is not finite")
    if not method.trains_base:
        _check_tensors(adapter, method)
    for name, tensor in adapter.tensors.items():
        if not np.isfinite(tensor).all():
            raise IncompatibleError(f"'{name}' of the adapter holds NaN or infinity")


def save(adapter: Adapter, path: Path) -> None:
    header = _Header(
        method=adapter.method,
        rank=adapter.rank,
        alpha=adapter.alpha,
        targets=tuple(
            _Target(
                name=target.name,
                role=target.role,
                out_features=target.out_features,
                in_features=target.in_features,
            )
            for target in adapter.targets
        ),
        ranks=dict(adapter.ranks),
        scalings=dict(adapter.scalings),
        base_digest=adapter.base_digest,
        seed=adapter.seed,
        labels=adapter.labels,
        template=adapter.template,
    )
    text = json.dumps(header.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in adapter.tensors.items()}
    write_durably(path, safetensors.numpy.save(tensors, metadata={METADATA: text}))


def load(path: Path) -> Adapter:
    """Raises IncompatibleError when the file is damaged or not an adapter of ours."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise IncompatibleError(f"'{path}' is not a safetensors file: {error}") from error
    if METADATA not in metadata:
        raise IncompatibleError(
            f"'{path}' is not an adapter of this program",
            hint="bring a PEFT adapter in with `compiler import-adapter`",
        )
    wrong = sorted(name for name, tensor in tensors.items() if tensor.dtype != np.float32)
    if wrong:
        raise IncompatibleError(f"'{path}' holds {wrong[0]} as {tensors[wrong[0]].dtype}")
    adapter = _adapter(path, metadata[METADATA], tensors)
    check(adapter)
    return adapter


class _Target(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: str
    out_features: int
    in_features: int


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    method: str
    rank: int | None
    alpha: float | None
    targets: tuple[_Target, ...]
    ranks: dict[str, int]
    scalings: dict[str, float]
    base_digest: str
    seed: int
    labels: tuple[str, ...] | None
    template: Template | None


def _adapter(path: Path, text: str, tensors: dict[str, Floats]) -> Adapter:
    try:
        header = _Header.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise IncompatibleError(f"'{path}' is not valid at {place}: {first['msg']}") from error
    return Adapter(
        method=header.method,
        rank=header.rank,
        alpha=header.alpha,
        targets=tuple(Target(**target.model_dump()) for target in header.targets),
        ranks=header.ranks,
        scalings=header.scalings,
        tensors=tensors,
        base_digest=header.base_digest,
        seed=header.seed,
        labels=header.labels,
        template=header.template,
    )


def _check_tensors(adapter: Adapter, method: Method) -> None:
    expected = dict(_expected_shapes(adapter, method))
    optional = {spec.name for spec in method.model_tensors() if spec.seeded}
    found = adapter.tensors.keys() - _classifier_tensors(adapter)
    missing, left_over = expected.keys() - found - optional, found - expected.keys()
    if missing or left_over:
        raise IncompatibleError(
            f"an adapter of method '{method.name}' lacks {sorted(missing) or 'nothing'} and has "
            f"{sorted(left_over) or 'nothing'} too many"
        )
    at_least = {spec.name for spec in method.model_tensors()}
    for name in sorted(found):
        shape = adapter.tensors[name].shape
        fits = len(shape) == len(expected[name]) and all(
            have == want or (name in at_least and have > want)
            for have, want in zip(shape, expected[name], strict=True)
        )
        if not fits:
            raise IncompatibleError(
                f"'{name}' has shape {list(shape)}, but {list(expected[name])} is needed"
            )


def _expected_shapes(adapter: Adapter, method: Method) -> Iterator[tuple[str, tuple[int, ...]]]:
    widest = model_dimensions(adapter.targets)
    for target in adapter.targets:
        specs = method.tensors_for(target.role)
        if not specs:
            raise IncompatibleError(
                f"method '{method.name}' adapts no target of role '{target.role}' ('{target.name}')"
            )
        rank = adapter.ranks.get(target.name)
        for spec in specs:
            shape = spec.resolve(widest | target_dimensions(target, rank))
            yield f"{target.name}.{spec.name}", shape
    for spec in method.model_tensors():
        yield spec.name, spec.resolve(widest | {"rank": adapter.rank or 0})


def _classifier_tensors(adapter: Adapter) -> set[str]:
    """The names of the head's tensors; raises IncompatibleError when they do not fit the labels."""
    site = classifier_site(adapter)
    labels = len(adapter.labels or ())
    names = {f"{site}.weight", f"{site}.bias"} & adapter.tensors.keys()
    for name in sorted(names):
        shape = adapter.tensors[name].shape
        if len(shape) != (2 if name.endswith(".weight") else 1) or shape[0] != labels:
            raise IncompatibleError(
                f"'{name}' has shape {list(shape)}, but the adapter has {labels} labels"
            )
    return names
