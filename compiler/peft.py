"""PEFT's adapter directory, read: every tensor is used, or the directory is refused.

What PEFT has no words for (the base digest, labels, how prompts were dressed) travels in a file
of ours beside PEFT's; compiler/peft_write.py is the way out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
from pydantic import BaseModel, ConfigDict, ValidationError

from compiler.adapter import Adapter, Floats, Template, check
from compiler.peft_config import CONFIG, PeftConfig, read_config
from planner.errors import IncompatibleError, did_you_mean
from planner.method import Method, Target, buildable

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
SIDE = "paretune.json"
MODEL = "base_model."
MODULE = "base_model.model."

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_SHOWN = 5


class SideManifest(BaseModel):
    """What a directory of ours says beyond PEFT's own words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    base_digest: str
    method: str
    seed: int
    labels: tuple[str, ...] | None
    template: Template | None


def read(
    folder: Path,
    sites: Sequence[Target],
    base_digest: str,
    labels: tuple[str, ...] | None = None,
) -> Adapter:
    """The adapter in a PEFT directory, for a base of that digest with those linears.

    `labels` name a classifier's rows in order. Projections that the file leaves to a seed are left
    out. Raises IncompatibleError for what cannot be made to give PEFT's own outputs.
    """
    config, side = read_config(folder), read_side(folder)
    if side is not None and side.base_digest != base_digest:
        raise IncompatibleError(
            f"the adapter in '{folder}' is for base {side.base_digest}, but the artifact holds "
            f"base {base_digest}",
            hint="import it into an artifact of its own base",
        )
    method = _method(config, side)
    contents = _sort_out(read_tensors(folder), config, method, sites)
    targets = _targets(contents, config, method, sites)
    adapter = Adapter(
        method=method.name,
        rank=config.default_rank,
        alpha=config.lora_alpha if method.scaling else None,
        targets=targets,
        ranks={t.name: rank for t in targets if (rank := config.rank(t.name)) is not None},
        scalings={t.name: config.scaling(t.name) for t in targets},
        tensors=contents.tensors,
        base_digest=base_digest,
        seed=config.projection_prng_key,
        labels=_labels(contents, side, labels),
        template=side.template if side else None,
    )
    check(adapter)
    return adapter


def read_side(folder: Path) -> SideManifest | None:
    """Our own file, where the directory has one."""
    path = folder / SIDE
    if not path.is_file():
        return None
    try:
        return SideManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the top"
        raise IncompatibleError(f"'{path}' is not valid at {place}: {first['msg']}") from error


def read_tensors(folder: Path) -> dict[str, Floats]:
    """The file's tensors as float32; raises IncompatibleError for a pickle or a damaged file."""
    path = folder / WEIGHTS
    if not path.is_file():
        found = (
            f"only {PICKLE}, and pickle is never loaded" if (folder / PICKLE).exists() else "none"
        )
        raise IncompatibleError(
            f"'{folder}' has no {WEIGHTS} ({found})",
            hint="save the adapter again with PEFT's safe_serialization=True",
        )
    try:
        entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise IncompatibleError(f"'{path}' is not a safetensors file: {error}") from error
    return {name: _floats(name, entry) for name, entry in entries}


@dataclass(frozen=True)
class _Contents:
    """The file's tensors under our names, the modules they adapt, and the classifier's site."""

    tensors: dict[str, Floats]
    modules: frozenset[str]
    classifier: str | None


def _floats(name: str, entry: Mapping[str, object]) -> Floats:
    dtype, shape, data = str(entry["dtype"]), entry["shape"], entry["data"]
    if dtype not in _DTYPES or not isinstance(data, (bytes, bytearray)):
        raise IncompatibleError(f"'{name}' of the adapter is stored as {dtype}")
    values = np.frombuffer(data, _DTYPES[dtype])
    if dtype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32).reshape(shape)  # type: ignore[call-overload, no-any-return]


def _method(config: PeftConfig, side: SideManifest | None) -> Method:
    """What the configuration says, or the method that it says the same of and that wrote it."""
    found = config.method()
    if side is not None and side.method in buildable():
        stated = buildable()[side.method]
        return stated if stated.peft_config == found.peft_config else found
    return found


def _sort_out(
    stored: Mapping[str, Floats], config: PeftConfig, method: Method, sites: Sequence[Target]
) -> _Contents:
    """Raises IncompatibleError when a tensor of the file has no use."""
    own = {spec.peft_key: spec.name for spec in method.tensors if spec.scope == "target"}
    in_file = method.model_tensors() if config.save_projection else ()
    shared = {f"{MODEL}{spec.peft_key}": spec.name for spec in in_file}
    heads = _heads(config, sites)
    tensors, modules, left_over = {}, set(), []
    for key, tensor in stored.items():
        path = key.removeprefix(MODULE)
        module, suffix = _split(path, [name for name in own if name])
        if key in shared:
            tensors[shared[key]] = tensor
        elif key != path and path in heads:
            tensors[path] = tensor
        elif key != path and suffix:
            tensors[f"{module}.{own[suffix]}"] = tensor
            modules.add(module)
        else:
            left_over.append(key)
    if left_over:
        _refuse_left_over(sorted(left_over), config, method)
    absent = [key for key, name in shared.items() if name not in tensors]
    if absent:
        raise IncompatibleError(f"{CONFIG} sets save_projection, but the file lacks {absent}")
    found = {heads[path] for path in tensors if path in heads}
    return _Contents(tensors, frozenset(modules), next(iter(found), None))


def _split(path: str, suffixes: Sequence[str]) -> tuple[str, str]:
    for suffix in suffixes:
        if path.endswith(f".{suffix}"):
            return path.removesuffix(f".{suffix}"), suffix
    return path, ""


def _heads(config: PeftConfig, sites: Sequence[Target]) -> dict[str, str]:
    """The classifier's tensors that PEFT saves whole, and the site they belong to."""
    names = [site.name for site in sites if site.role == "classifier" and config.saves(site.name)]
    return {f"{name}.{part}": name for name in names for part in ("weight", "bias")}


def _refuse_left_over(keys: Sequence[str], config: PeftConfig, method: Method) -> None:
    listed = ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" * (len(keys) > _SHOWN))
    whole = [key for key in keys if config.saves(key.removeprefix(MODULE).rpartition(".")[0])]
    if whole:
        raise IncompatibleError(
            f"{CONFIG} sets modules_to_save to {config.modules_to_save}, and the file holds "
            f"{listed}: a layer trained whole, other than a classifier, cannot share the base"
        )
    raise IncompatibleError(f"the file holds tensors that {method.title} has no use for: {listed}")


def _targets(
    contents: _Contents, config: PeftConfig, method: Method, sites: Sequence[Target]
) -> tuple[Target, ...]:
    """The linears that the tensors adapt; they must be those that the configuration names."""
    known = {site.name for site in sites}
    for module in sorted(contents.modules - known):
        raise IncompatibleError(
            f"the adapter adapts '{module}', which is no site of this base",
            hint=did_you_mean(module, known),
        )
    named = {site.name for site in sites if config.targets(site)}
    for module in sorted(named ^ contents.modules):
        stated, held = ("names", "holds none") if module in named else ("leaves out", "holds some")
        raise IncompatibleError(f"{CONFIG} {stated} '{module}', but the file {held} of its tensors")
    return tuple(
        _as_adapted(site, config, method) for site in sites if site.name in contents.modules
    )


def _as_adapted(site: Target, config: PeftConfig, method: Method) -> Target:
    """The target with a role for which the method does what PEFT does there.

    Methods here choose the scaled side of a linear by its role; PEFT by `feedforward_modules`.
    """
    if config.peft_type != "IA3":
        return site
    by_input = config.feedforward(site.name)
    roles = next(spec.roles for spec in method.tensors if ("in" in spec.shape) == by_input)
    return site if roles is None or site.role in roles else site._replace(role=roles[0])


def _labels(
    contents: _Contents, side: SideManifest | None, labels: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    if contents.classifier is None:
        return None
    rows = len(contents.tensors[f"{contents.classifier}.weight"])
    names = labels or (side.labels if side else None)
    # Hugging Face's own names for rows that nobody named.
    names = names or tuple(f"LABEL_{row}" for row in range(rows))
    if len(names) != rows:
        raise IncompatibleError(
            f"{len(names)} labels are named, but the classifier has {rows} rows"
        )
    return names
