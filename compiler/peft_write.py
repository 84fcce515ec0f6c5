"""An adapter as a PEFT directory, which PEFT itself loads with equal outputs."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import safetensors.numpy

from compiler.adapter import Adapter, Floats, check, classifier_site, model_tensors
from compiler.artifact import staging_folder, sync, write_durably
from compiler.lower import lower
from compiler.peft import MODEL, MODULE, SIDE, WEIGHTS, SideManifest
from compiler.peft_config import CONFIG
from compiler.row import VECTORS
from planner.errors import IncompatibleError, UsageError
from planner.method import Method, model_dimensions
from planner.method import method as method_named

CARD = """---
base_model: {base}
library_name: peft
---

{title} adapter, exported by Paretune. `{side}` holds the digest of its base weights.
"""


def write(adapter: Adapter, folder: Path, base_name: str) -> Adapter:
    """Makes the folder, whole or not at all; returns the adapter as it was written.

    A method that PEFT has no form for is written as plain LoRA if its update is a pair, as PiSSA's
    is at twice its rank. Raises IncompatibleError otherwise, UsageError if the folder exists.
    """
    if folder.exists():
        raise UsageError(f"'{folder}' exists already", hint="name another folder")
    adapter = _in_peft_terms(adapter)
    staging = staging_folder(folder)
    if staging.exists():
        rmtree(staging)
    staging.mkdir(parents=True)
    safetensors.numpy.save_file(
        dict(_tensors(adapter)), staging / WEIGHTS, metadata={"format": "pt"}
    )
    sync(staging / WEIGHTS)
    title = method_named(adapter.method).title
    card = CARD.format(base=json.dumps(base_name), title=title, side=SIDE)
    write_durably(staging / "README.md", card.encode())
    write_durably(staging / CONFIG, _json(_config(adapter, base_name)))
    write_durably(staging / SIDE, _json(_side(adapter).model_dump(mode="json")))
    staging.rename(folder)
    sync(folder.parent)
    return adapter


def _in_peft_terms(adapter: Adapter) -> Adapter:
    check(adapter)
    method = method_named(adapter.method)
    if method.trains_base:
        raise IncompatibleError(f"{method.title} changes the base model and has no PEFT form")
    if method.peft_config is not None and all(spec.peft_key for spec in method.tensors):
        return adapter
    return _as_plain_lora(adapter, method)


def _as_plain_lora(adapter: Adapter, method: Method) -> Adapter:
    """The same update with one pair per target and every factor in B."""

    def refuse(target: str) -> Floats:
        raise IncompatibleError(
            f"{method.title} has no PEFT form: its update of '{target}' depends on the base weight"
        )

    lowered = lower(adapter, refuse, lambda _: None)
    names = [target.name for target in adapter.targets]
    tensors = {f"{name}.lora_A": lowered[name].a for name in names}
    tensors |= {f"{name}.lora_B": lowered[name].b for name in names}
    head = classifier_site(adapter)
    tensors |= {key: t for key, t in adapter.tensors.items() if key.rpartition(".")[0] == head}
    scaled = any(getattr(lowered[name], vector) is not None for name in names for vector in VECTORS)
    if scaled or any(tensor is None for tensor in tensors.values()):
        raise IncompatibleError(f"{method.title} has no PEFT form: it is no plain low-rank pair")
    ranks = {name: lowered[name].rank for name in names}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    return replace(
        adapter,
        method="lora",
        rank=rank,
        alpha=float(rank),
        ranks=ranks,
        scalings=dict.fromkeys(names, 1.0),
        tensors={key: tensor for key, tensor in tensors.items() if tensor is not None},
    )


def _tensors(adapter: Adapter) -> Iterator[tuple[str, Floats]]:
    method = method_named(adapter.method)
    for target in adapter.targets:
        for spec in method.tensors_for(target.role):
            tensor = adapter.tensors[f"{target.name}.{spec.name}"]
            yield f"{MODULE}{target.name}.{spec.peft_key}", np.ascontiguousarray(tensor)
    shared = model_tensors(adapter)
    widest = model_dimensions(adapter.targets) | {"rank": adapter.rank or 0}
    for spec in method.model_tensors():
        # PEFT allocates no more than the widest target needs.
        used = tuple(slice(length) for length in spec.resolve(widest))
        yield f"{MODEL}{spec.peft_key}", np.ascontiguousarray(shared[spec.name][used])
    head = classifier_site(adapter)
    for key, tensor in adapter.tensors.items():
        if head is not None and key.rpartition(".")[0] == head:
            yield f"{MODULE}{key}", np.ascontiguousarray(tensor)


def _config(adapter: Adapter, base_name: str) -> dict[str, object]:
    method = method_named(adapter.method)
    head = classifier_site(adapter)
    common = {
        "base_model_name_or_path": base_name,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None if head is None else [head],
        "target_modules": [target.name for target in adapter.targets],
        "task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
    }
    forms = {"LORA": _lora_fields, "VERA": _vera_fields, "IA3": _ia3_fields}
    own = dict(method.peft_config or {})
    return {**common, **forms[str(own["peft_type"])](adapter, method), **own}


def _lora_fields(adapter: Adapter, method: Method) -> dict[str, object]:
    alphas = {name: _alpha(adapter, method, name) for name in adapter.ranks}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "bias": "none",
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "r": adapter.rank,
        "rank_pattern": {n: rank for n, rank in adapter.ranks.items() if rank != adapter.rank},
        "use_dora": False,
        "use_rslora": False,
    }


def _alpha(adapter: Adapter, method: Method, target: str) -> float:
    """The alpha that gives the target's scaling: the adapter's own, or worked out."""
    rank, scaling = adapter.ranks[target], adapter.scalings[target]
    if method.scaling is None:
        raise IncompatibleError(f"{method.title} has no scaling that PEFT could be told")
    same = adapter.alpha is not None and method.scaling(rank, adapter.alpha) == scaling
    alpha = adapter.alpha if same and adapter.alpha else scaling / method.scaling(rank, 1.0)
    # PEFT writes whole numbers; a file is the same whichever way its alpha came about.
    return int(alpha) if alpha == int(alpha) else alpha


def _vera_fields(adapter: Adapter, method: Method) -> dict[str, object]:
    return {
        "bias": "none",
        "projection_prng_key": adapter.seed,
        "r": adapter.rank,
        "save_projection": True,
        "vera_dropout": 0.0,
    }


def _ia3_fields(adapter: Adapter, method: Method) -> dict[str, object]:
    by_input = [
        target.name
        for target in adapter.targets
        if any("in" in spec.shape for spec in method.tensors_for(target.role))
    ]
    return {"feedforward_modules": by_input}


def _side(adapter: Adapter) -> SideManifest:
    return SideManifest(
        base_digest=adapter.base_digest,
        method=adapter.method,
        seed=adapter.seed,
        labels=adapter.labels,
        template=adapter.template,
    )


def _json(document: dict[str, object]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
