"""The base model and every tenant of a staged artifact, each against its own torch graph."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from compiler.adapter import Adapter
from compiler.bank import AdapterBank
from compiler.base_model import Base, frozen_weights
from compiler.data import batches
from compiler.dataset import Dataset
from compiler.engine import Engine, library_path
from compiler.export.merged import merge
from compiler.export.parity import (
    EXACT,
    FAST,
    Batch,
    Floats,
    Integers,
    Logits,
    check,
    compare,
    exported_logits,
    write_report,
)
from compiler.export.unmerged import MODEL
from compiler.graph import Graph
from compiler.manifest import BASE, Manifest
from compiler.tenants import bank_sites, read_row
from compiler.training_graph import graph_with, of_adapter, reference_graph

PARITY = "parity.json"
ROWS = 4
FAST_ROWS = 24
"""A rounded graph is judged by how often it agrees, which takes more tokens to know."""
LONGEST = 128


def report_parity(
    base: Base,
    manifest: Manifest,
    datasets: tuple[Dataset, ...],
    trained: Mapping[str, Adapter],
    staging: Path,
) -> None:
    """Write parity.json; raises IncompatibleError outside the tolerance."""
    engine = Engine(staging / MODEL, library=library_path(), threads=None)
    fast = manifest.precision == "fast"
    tolerance = FAST if fast else EXACT
    samples = {d.tenant: sample(d, FAST_ROWS if fast else ROWS) for d in datasets}
    agreements = []
    for tenant, exported, reference in _pairs(base, manifest, trained, staging, engine):
        batch = samples.get(tenant) or samples[datasets[0].tenant]
        labels = manifest.tenants[tenant].labels if tenant != BASE else None
        agreements.append(compare(tenant, _first(exported, labels), reference, [batch]))
    write_report(agreements, staging / PARITY)
    for agreement in agreements:
        check(agreement, tolerance)


def sample(dataset: Dataset, rows: int) -> Batch:
    """The first validation examples, shortened, as one right-padded batch."""
    examples = dataset.validation[:rows]
    (batch,) = batches(examples, len(examples), seed=0, epoch=0, pad_id=0)
    return Batch(batch.input_ids[:, :LONGEST], batch.attention_mask[:, :LONGEST])


def _pairs(
    base: Base, manifest: Manifest, trained: Mapping[str, Adapter], staging: Path, engine: Engine
) -> Iterator[tuple[str, Logits, Logits]]:
    """(tenant, exported, reference), the base model first where the artifact serves it."""
    if manifest.kind == "merged":
        for name, adapter in trained.items():
            stored, _ = merge(frozen_weights(base), adapter, {})
            reference = _torch_logits(graph_with(base, {**frozen_weights(base), **stored}))
            yield name, exported_logits(engine, kv=manifest.kv), reference
        return
    bank = AdapterBank(bank_sites(manifest))
    for name in trained:
        bank.add_row(name, read_row(staging, name))
    yield (
        BASE,
        exported_logits(engine, kv=manifest.kv, bank=bank),
        _torch_logits(reference_graph(base, None)),
    )
    for name, adapter in trained.items():
        exported = exported_logits(engine, kv=manifest.kv, bank=bank, tenant=name)
        yield name, exported, _torch_logits(reference_graph(base, of_adapter(adapter)))


def _torch_logits(graph: Graph) -> Callable[[Integers, Integers], Floats]:
    def run(ids: Integers, mask: Integers) -> Floats:
        inputs = {"input_ids": ids, "attention_mask": mask}
        with torch.no_grad():
            logits = graph.module(*(torch.from_numpy(inputs[name]) for name in graph.inputs))
        result: Floats = logits.numpy()
        return result

    return run


def _first(exported: Logits, labels: tuple[str, ...] | None) -> Logits:
    """A tenant's own labels are the first of a shared head's."""
    if labels is None:
        return exported
    return lambda ids, mask: np.ascontiguousarray(exported(ids, mask)[:, : len(labels)])
