"""Skeleton + frozen weights + one adapter -> model.onnx with the adapter folded in.

    W, bias -> fold(update, W), bias + shift      (full fine-tuning: every trained tensor replaced)

A folded weight is stored in the format its base weight had; where that rounds it, the drift is
the relative error ||stored - folded|| / ||folded||.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from compiler import nf4
from compiler.adapter import Adapter, classifier_site, target_tensors
from compiler.export.attach_weights import Precision, Weight, Weights, weight_of
from compiler.export.skeleton import Skeleton, parameters
from compiler.export.unmerged import write_graph
from compiler.manifest import StoredArray
from compiler.quantized import QuantizedWeight
from planner.errors import IncompatibleError
from planner.method import Site, Target, method
from planner.update import fold


@dataclass(frozen=True)
class Merged:
    """Where each initializer lies, and the drift of each weight that was rounded, by name."""

    stored: Mapping[str, StoredArray]
    drift: Mapping[str, float]


def write_merged(
    skeleton: Skeleton, weights: Weights, adapter: Adapter, folder: Path, *, precision: Precision
) -> Merged:
    """Writes model.onnx and its data; raises IncompatibleError when the two do not fit."""
    model = skeleton.model()
    merged, drift = merge(weights, adapter, parameters(model))
    shapes = {str(value.name): value.shape for value in model.graph.inputs}
    for name, tensor in merged.items():
        if isinstance(tensor, torch.Tensor):
            merged[name] = _padded(tensor, shapes.get(name), adapter)
    stored = write_graph(model, {**weights, **merged}, (), folder, precision=precision)
    return Merged(stored, drift)


def merge(
    weights: Weights, adapter: Adapter, names: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Weight], dict[str, float]]:
    """The tensors that the adapter changes, as they are stored, and the drift of those rounded.

    `names` are all the names of each parameter. Full fine-tuning of a tied weight changes it under
    every name; a low-rank update of a tied linear leaves the embedding as it is.
    """
    merged: dict[str, Weight] = {}
    drift = {}
    for name, tensor in folded(weights, adapter).items():
        base = weights.get(name)
        merged[name] = _stored_like(base, tensor)
        if base is not None and _format(base) != torch.float32:
            drift[name] = _relative_error(merged[name], tensor)
    if method(adapter.method).trains_base:
        for tied in names.values():
            trained = [name for name in tied if name in merged]
            merged |= {name: merged[trained[0]] for name in tied if trained and name not in merged}
    return merged, drift


def folded(weights: Weights, adapter: Adapter) -> dict[str, torch.Tensor]:
    """Every parameter that the adapter changes, float32, by its name."""
    if method(adapter.method).trains_base:
        return {name: torch.from_numpy(tensor) for name, tensor in adapter.tensors.items()}
    changed: dict[str, torch.Tensor] = {}
    for target in adapter.targets:
        changed |= _folded_target(weights, adapter, target)
    head = classifier_site(adapter)
    own = (f"{head}.weight", f"{head}.bias") if head is not None else ()
    return changed | {n: torch.from_numpy(adapter.tensors[n]) for n in own if n in adapter.tensors}


def _folded_target(weights: Weights, adapter: Adapter, target: Target) -> dict[str, torch.Tensor]:
    bias = weights.get(f"{target.name}.bias")
    if isinstance(bias, QuantizedWeight):
        raise IncompatibleError(f"the bias of '{target.name}' is given in 4 bits")
    weight = _dense(weight_of(weights, (f"{target.name}.weight",)))
    tensors = {n: torch.from_numpy(t) for n, t in target_tensors(adapter, target).items()}
    site = Site(target, weight, bias, adapter.scalings[target.name])
    new, shift = fold(method(adapter.method).update(tensors, site), weight)
    changed = {f"{target.name}.weight": new}
    if shift is not None:
        changed[f"{target.name}.bias"] = shift if bias is None else bias.float() + shift
    return changed


def _padded(tensor: torch.Tensor, shape: ir.Shape | None, adapter: Adapter) -> torch.Tensor:
    """A tenant's classifier as tall as the graph's: the rows beyond its labels are zero."""
    rows = None if shape is None else shape[0]
    if not isinstance(rows, int) or len(tensor) != len(adapter.labels or ()) or len(tensor) > rows:
        return tensor
    padded = tensor.new_zeros(rows, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    return padded


def _dense(weight: Weight) -> torch.Tensor:
    return nf4.dequantize(weight) if isinstance(weight, QuantizedWeight) else weight.float()


def _format(weight: Weight) -> torch.dtype:
    return torch.uint8 if isinstance(weight, QuantizedWeight) else weight.dtype


def _stored_like(base: Weight | None, tensor: torch.Tensor) -> Weight:
    if isinstance(base, QuantizedWeight):
        return nf4.quantize(tensor, double=base.nested)
    return tensor if base is None else tensor.to(base.dtype)


def _relative_error(stored: Weight, tensor: torch.Tensor) -> float:
    norm = float(tensor.norm())
    return float((_dense(stored) - tensor).norm()) / norm if norm else 0.0
