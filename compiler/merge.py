"""Unmerged artifact + tenant -> merged artifact: the tenant's update folded into every weight.

    W -> g * W * l + (e * B * d) A,  bias -> bias + c        (the op's own equation, compiler.row)

A folded weight is stored in the base's format; where that rounds it, the drift is the relative
error ||stored - folded|| / ||folded||. The merged graph is compared with the unmerged one.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from compiler import nf4
from compiler.artifact import (
    check_outside,
    check_vacant,
    file_records,
    publish,
    staging_folder,
    verify,
    write_durably,
    write_manifest,
)
from compiler.export.attach_weights import OP, SCALES
from compiler.export.external_data import write_external_data
from compiler.export.unmerged import DATA, MODEL
from compiler.frozen_weights import base_bias, base_weight
from compiler.manifest import Manifest, unknown_tenant
from compiler.ops.quant_low_rank_matmul import register_schema
from compiler.quantized import QuantizedWeight, arrays, dequantize
from compiler.row import Floats, LoweredSite, unpack_row
from compiler.session import Session
from compiler.tenants import bank_sites, read_row
from planner.errors import IncompatibleError

DRIFT_REPORT = "drift.json"
LEFT_BEHIND = ("tenants", "model.onnx*", "parity.json", ".change-*")
LARGEST_DRIFT = {"bf16": 2.0**-8, "nf4": 0.15}
"""Rounding to 8 bits of mantissa; NF4 of Gaussian weights is off by 0.093 (QLoRA, section 3)."""

BIAS = 7
BANK_INPUTS = ("bank", "slot")
EXACT_ERROR = 1e-3
PROBE_TOKENS = (2, 48)


def merge(folder: Path, tenant: str, out: Path, *, replace: bool = False) -> dict[str, float]:
    """Publish the merged artifact; returns the drift of every weight that was rounded, by site.

    Raises IncompatibleError when the merged graph of an exact float artifact disagrees.
    """
    check_vacant(out, replace=replace)
    check_outside(out, folder)
    manifest = verify(folder)
    if manifest.kind == "merged":
        raise IncompatibleError(f"'{folder}' is merged already")
    if tenant not in manifest.tenants:
        raise unknown_tenant(tenant, manifest.tenants)
    staging = staging_folder(out)
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(folder, staging, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    lowered = unpack_row(bank_sites(manifest), read_row(folder, tenant))
    drift = _write_graph(folder, manifest, lowered, staging)
    merged = _manifest(manifest, tenant, staging)
    write_manifest(staging, merged)
    _compare(folder, manifest, tenant, staging, drift)
    write_manifest(staging, merged.model_copy(update={"files": file_records(staging)}))
    publish(staging, out, replace=replace)
    return drift


def fold_row(lowered: LoweredSite, weight: Floats) -> tuple[Floats, Floats | None]:
    """The merged weight [out, in] and the shift [out] of the bias, if there is one."""
    folded: Floats = weight
    if lowered.input_scale is not None:
        folded = folded * lowered.input_scale
    if lowered.output_scale is not None:
        folded = folded * lowered.output_scale[:, None]
    if lowered.a is not None and lowered.b is not None:
        b = lowered.b if lowered.latent_scale is None else lowered.b * lowered.latent_scale
        if lowered.pair_scale is not None:
            b = b * lowered.pair_scale[:, None]
        folded = folded + np.asarray(b @ lowered.a, np.float32)
    return np.ascontiguousarray(folded, np.float32), lowered.output_shift


def _write_graph(
    folder: Path, manifest: Manifest, lowered: Mapping[str, LoweredSite], staging: Path
) -> dict[str, float]:
    model = ir.load(folder / MODEL)
    tensors = {
        name: _tensor(value)
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    drift: dict[str, float] = {}
    for node in model.graph:
        if node.op_type == OP:
            _detach(node)
            name = str(node.name)
            if name in lowered:
                weight, shift = fold_row(lowered[name], base_weight(folder, manifest, name))
                stored = _stored(manifest, weight)
                tensors |= _place(node, stored)
                if manifest.format != "fp32":
                    drift[name] = _checked_drift(name, stored, weight, manifest.format)
                if shift is not None:
                    bias = base_bias(folder, manifest, name)
                    tensors |= _shift_bias(model, node, shift if bias is None else bias + shift)
    for value in [value for value in model.graph.inputs if value.name in BANK_INPUTS]:
        model.graph.inputs.remove(value)
    stored_apart = [v for v in model.graph.initializers.values() if str(v.name) in tensors]
    write_external_data([(v, tensors[str(v.name)]) for v in stored_apart], staging / DATA)
    data = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    (staging / MODEL).write_bytes(data)
    register_schema()
    onnx.checker.check_model(staging / MODEL)
    return drift


def _tensor(value: ir.Value) -> torch.Tensor:
    """An initializer's numbers."""
    if value.const_value is None:
        raise IncompatibleError(f"initializer '{value.name}' has no data")
    if value.dtype == ir.DataType.BFLOAT16:
        bits = np.frombuffer(value.const_value.tobytes(), np.int16).copy()
        return torch.from_numpy(bits).view(torch.bfloat16).view(value.const_value.shape.numpy())
    return torch.from_numpy(np.array(value.const_value.numpy()))


def _detach(node: ir.Node) -> None:
    """Take the bank away from a node: it has inputs up to the bias, and no site."""
    node.attributes["site"] = ir.AttrInt64("site", -1)
    if len(node.inputs) > BIAS + 1:
        node.resize_inputs(BIAS + 1)


def _stored(manifest: Manifest, weight: Floats) -> torch.Tensor | QuantizedWeight:
    tensor = torch.from_numpy(weight)
    if manifest.format == "nf4":
        return nf4.quantize(tensor)
    return tensor.to(torch.bfloat16) if manifest.format == "bf16" else tensor


def _place(node: ir.Node, stored: torch.Tensor | QuantizedWeight) -> dict[str, torch.Tensor]:
    """The new contents of the node's weight initializers, by their names."""
    if isinstance(stored, torch.Tensor):
        return {_name(node, 1): stored}
    parts = arrays(stored)
    return {
        _name(node, place): torch.from_numpy(parts[part])
        for place, part in enumerate(("codes", *SCALES), start=1)
    }


def _name(node: ir.Node, place: int) -> str:
    value = node.inputs[place]
    if value is None:
        raise IncompatibleError(f"'{node.name}' has no input {place}")
    return str(value.name)


def _shift_bias(model: ir.Model, node: ir.Node, bias: Floats) -> dict[str, torch.Tensor]:
    name = f"{node.name}.bias"
    if len(node.inputs) <= BIAS or node.inputs[BIAS] is None:
        value = ir.Value(name=name)
        model.graph.initializers[name] = value
        node.resize_inputs(BIAS + 1)
        node.replace_input_with(BIAS, value)
    return {_name(node, BIAS): torch.from_numpy(np.asarray(bias, np.float32))}


def _checked_drift(
    name: str, stored: torch.Tensor | QuantizedWeight, weight: Floats, weight_format: str
) -> float:
    drift, limit = _relative_error(stored, weight), LARGEST_DRIFT[weight_format]
    if drift > limit:
        raise IncompatibleError(
            f"merging moves '{name}' by {drift:.4f} when it is stored as {weight_format}, the "
            f"limit is {limit:.4f}",
            hint="serve the tenant unmerged, or merge it into an fp32 artifact",
        )
    return drift


def _relative_error(stored: torch.Tensor | QuantizedWeight, weight: Floats) -> float:
    kept = dequantize(stored) if isinstance(stored, QuantizedWeight) else stored.float().numpy()
    norm = float(np.linalg.norm(weight))
    return float(np.linalg.norm(kept - weight)) / norm if norm else 0.0


def _manifest(manifest: Manifest, tenant: str, staging: Path) -> Manifest:
    record = manifest.tenants[tenant].model_copy(update={"files": (), "order": 1})
    return manifest.model_copy(
        update={
            "kind": "merged",
            "sites": (),
            "tenants": {tenant: record},
            "inputs": tuple(name for name in manifest.inputs if name not in BANK_INPUTS),
            "data": {k: v for k, v in manifest.data.items() if k == tenant},
            "files": file_records(staging),
        }
    )


def _compare(
    folder: Path, manifest: Manifest, tenant: str, staging: Path, drift: Mapping[str, float]
) -> None:
    """Write drift.json: the logits of both graphs on the same tokens, and every weight's drift."""
    merged, shared = Session.open(staging), Session.open(folder, verify=False, tenants=[tenant])
    limit = max(2, min(merged.tokenizer.backend.get_vocab_size(), 32768))
    ids = np.random.default_rng(0).integers(1, limit, PROBE_TOKENS)
    found, wanted = merged.logits(ids, tenant), shared.logits(ids, tenant)
    error = float(np.abs(found - wanted).max())
    report = {
        "schema_version": 1,
        "logits_max_error": error,
        "logits_top1_agreement": float((found.argmax(-1) == wanted.argmax(-1)).mean()),
        "weight_drift": dict(drift),
    }
    write_durably(staging / DRIFT_REPORT, (json.dumps(report, indent=1) + "\n").encode())
    if manifest.format == "fp32" and error > EXACT_ERROR:
        raise IncompatibleError(
            f"the merged graph disagrees with the unmerged one for '{tenant}': the largest error "
            f"is {error:.6g}, the limit {EXACT_ERROR:.6g}"
        )
