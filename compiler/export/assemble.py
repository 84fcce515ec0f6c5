"""Trained adapters + base -> a published artifact: lower, export, compare, publish."""

import json
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal, cast

import onnx

from compiler import huggingface
from compiler.adapter import Adapter
from compiler.artifact import file_records, publish, staging_folder, write_durably, write_manifest
from compiler.base_model import CAUSAL_LM, Base, frozen_weights
from compiler.dataset import Dataset
from compiler.export import skeleton
from compiler.export.inference_forms import causal_form, encoder_form
from compiler.export.merged import write_merged
from compiler.export.parity_report import report_parity
from compiler.export.unmerged import MODEL, write_unmerged
from compiler.frozen_weights import site_record
from compiler.graph import attribute, linears
from compiler.lower import lower
from compiler.manifest import BaseRecord, KvCache, Manifest, SiteRecord, TenantRecord
from compiler.request import Request
from compiler.row import Floats, Site
from compiler.tenants import describe, tenant_folder, write_tenant
from compiler.tokenizer import FILES
from compiler.workspace import code_digest
from planner.documents import dump
from planner.method import ALL_LINEAR, Target
from planner.plan import Plan, digest

Say = Callable[[str], None]
DRIFT_REPORT = "drift.json"
PACKAGES = ("paretune", "torch", "transformers", "onnx", "onnxruntime")


def assemble(
    request: Request,
    base: Base,
    base_digest: str,
    datasets: tuple[Dataset, ...],
    trained: Mapping[str, Adapter],
    say: Say,
) -> Manifest:
    """Write the artifact aside, compare it with the trained graphs, and publish it by a rename."""
    staging = staging_folder(request.out)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        return _publish(request, base, base_digest, datasets, trained, say, staging)
    except BaseException:
        # What is trained is kept by the workspace; a staged model is only a full disk's worth.
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _publish(
    request: Request,
    base: Base,
    base_digest: str,
    datasets: tuple[Dataset, ...],
    trained: Mapping[str, Adapter],
    say: Say,
    staging: Path,
) -> Manifest:
    plan = request.plan
    staging.mkdir(parents=True)
    say("exporting the graph")
    exporter = write_merged_artifact if plan.candidate.export == "merged" else write_shared_artifact
    records = exporter(request, base, trained, staging)
    _copy_texts(request, staging)
    say("comparing the exported graph with the trained one")
    manifest = _manifest(request, base_digest, datasets, trained, records, staging)
    report_parity(base, manifest, datasets, trained, staging)
    manifest = manifest.model_copy(update={"files": file_records(staging)})
    write_manifest(staging, manifest)
    return publish(staging, request.out, replace=request.replace)


def write_shared_artifact(
    request: Request, base: Base, trained: Mapping[str, Adapter], staging: Path
) -> tuple[SiteRecord, ...]:
    """The graph with the bank's inputs, and every tenant's row."""
    sites = adaptable(base)
    stored = write_unmerged(
        captured_skeleton(request, base),
        frozen_weights(base),
        sites,
        staging,
        precision=request.plan.candidate.precision,
    )
    bank_sites = tuple(Site(s.name, s.out_features, s.in_features) for s in sites)
    for name, adapter in trained.items():
        lowered = lower(adapter, _weight(base), _bias(base))
        write_tenant(staging / tenant_folder(name), bank_sites, adapter, lowered)
    return tuple(site_record(site, stored) for site in sites)


def write_merged_artifact(
    request: Request, base: Base, trained: Mapping[str, Adapter], staging: Path
) -> tuple[SiteRecord, ...]:
    """The graph with the one tenant folded into its weights."""
    (adapter,) = trained.values()
    merged = write_merged(
        captured_skeleton(request, base),
        frozen_weights(base),
        adapter,
        staging,
        precision=request.plan.candidate.precision,
    )
    text = json.dumps({"schema_version": 1, "weight_drift": dict(merged.drift)}, indent=1)
    write_durably(staging / DRIFT_REPORT, text.encode())
    return ()


def adaptable(base: Base) -> tuple[Target, ...]:
    """The sites of the bank: every linear but the output head, so that tenants may differ."""
    return tuple(t for t in base.targets if t.role in ALL_LINEAR or t.role == "classifier")


def captured_skeleton(request: Request, base: Base) -> skeleton.Skeleton:
    """The inference graph of the base model, captured once per architecture."""
    key: dict[str, object] = dict(huggingface.capture_key(request.model))
    if base.task == CAUSAL_LM:
        return skeleton.cached(
            lambda: causal_form(huggingface.load_causal_lm(request.model)),
            {"form": CAUSAL_LM, "config": key},
            request.cache,
        )
    labels = next(t.out_features for t in base.targets if t.role == "classifier")
    return skeleton.cached(
        lambda: encoder_form(huggingface.load_encoder(request.model, labels)),
        {"form": "encoder", "labels": labels, "config": key},
        request.cache,
    )


def _weight(base: Base) -> Callable[[str], Floats]:
    return lambda name: base.weight(name).numpy()


def _bias(base: Base) -> Callable[[str], Floats | None]:
    paths = {line.name: line.bias for line in linears(base.graph)}

    def bias(name: str) -> Floats | None:
        path = paths[name]
        return None if path is None else attribute(base.graph.module, path).numpy()

    return bias


def _copy_texts(request: Request, staging: Path) -> None:
    for name in (huggingface.CONFIG, "generation_config.json", *FILES):
        if (request.model / name).is_file():
            shutil.copyfile(request.model / name, staging / name)
    write_durably(staging / "plan.json", dump(request.plan).encode())


def _manifest(
    request: Request,
    base_digest: str,
    datasets: tuple[Dataset, ...],
    trained: Mapping[str, Adapter],
    sites: tuple[SiteRecord, ...],
    staging: Path,
) -> Manifest:
    plan = request.plan
    graph = onnx.load(staging / MODEL, load_external_data=False).graph
    config = huggingface.read_config(request.model)
    return Manifest(
        kind=plan.candidate.export,
        # The build has refused any other task before it began.
        task=cast(Literal["causal_lm", "sequence_classification"], plan.task),
        base=BaseRecord(digest=base_digest, name=plan.model.name),
        format=plan.candidate.format,
        precision=plan.candidate.precision,
        sites=sites,
        inputs=tuple(value.name for value in graph.input),
        outputs=tuple(value.name for value in graph.output),
        kv=_kv(graph),
        context_length=config.get("max_position_embeddings"),
        tenants={
            name: described(plan, name, adapter, order)
            for order, (name, adapter) in enumerate(trained.items(), start=1)
        },
        files=file_records(staging),
        plan_digest=digest(plan),
        data={dataset.tenant: dataset.digest for dataset in datasets},
        seeds={"training": plan.training.seed},
        versions={name: version(name) for name in PACKAGES} | {"code": code_digest()},
    )


def described(plan: Plan, name: str, adapter: Adapter, order: int) -> TenantRecord:
    """A tenant's record; one that is folded into the weights has no files of its own."""
    record = describe(name, adapter, order)
    return record.model_copy(update={"files": ()}) if plan.candidate.export == "merged" else record


def _kv(graph: onnx.GraphProto) -> KvCache | None:
    """The cache's shape, from the graph's own inputs past.<layer>.key."""
    keys = [v for v in graph.input if v.name.startswith("past.") and v.name.endswith(".key")]
    if not keys:
        return None
    sizes = [axis.dim_value for axis in keys[0].type.tensor_type.shape.dim]
    return KvCache(layers=len(keys), kv_heads=sizes[1], head_dim=sizes[3])
