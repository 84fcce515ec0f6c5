"""A module of nobody's library the whole way: capture, roles, training, export, serving."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from compiler.adapter import Adapter, uniform
from compiler.artifact import file_records, publish, staging_folder, write_manifest
from compiler.base_model import Base
from compiler.capture import capture
from compiler.export import skeleton
from compiler.export.form import Form, Port
from compiler.export.unmerged import write_unmerged
from compiler.frozen_weights import site_record
from compiler.graph import Graph
from compiler.manifest import BaseRecord, Manifest
from compiler.passes.insert_adapters import insert_adapters
from compiler.roles import targets
from compiler.session import Session
from compiler.tenants import bank_sites, describe, lower_onto, tenant_folder, write_tenant
from compiler.training_graph import of_adapter, reference_graph, start
from planner.method import method
from planner.plan import Candidate

FEATURES, WIDTH, CLASSES, ROWS = 6, 32, 2, 256
RANK, ALPHA, STEPS = 8, 16.0, 60
DIGEST = hashlib.sha256(b"quadrants").hexdigest()


class Quadrants(nn.Module):
    """A residual block on a few numbers; nothing of it is a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.grow = nn.Linear(WIDTH, 2 * WIDTH)
        self.shrink = nn.Linear(2 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.decide = nn.Linear(WIDTH, CLASSES)
        self.register_buffer("centre", torch.linspace(-0.2, 0.2, FEATURES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.embed(x - self.centre)) * 2
        hidden = hidden + self.shrink(nn.functional.gelu(self.grow(hidden)))
        return self.decide(self.norm(hidden))


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    return torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(1))


def classes(points: torch.Tensor, tenant: str) -> torch.Tensor:
    """XOR of the signs of two coordinates, which no linear map tells; other two per tenant."""
    first, second = {"acme": (0, 1), "globex": (2, 3)}[tenant]
    return (points[:, first] * points[:, second] > 0).long()


@pytest.fixture(scope="module")
def base() -> Base:
    torch.manual_seed(0)
    graph = capture(Quadrants(), (torch.zeros(2, FEATURES),), {"x": (0,)})
    return Base("module", "fp32", graph, targets(graph), {})


def logits(graph: Graph, points: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return graph.module(points).numpy()


def test_roles_are_read_off_the_dataflow(base: Base) -> None:
    roles = {target.name: target.role for target in base.targets}
    assert roles == {
        "embed": "mlp.up",
        "grow": "mlp.up",
        "shrink": "mlp.down",
        "decide": "classifier",
    }


def train(base: Base, kind: str, points: torch.Tensor, wanted: torch.Tensor) -> SimpleNamespace:
    """An adapter of every linear but the last, and the loss before and after."""
    candidate = Candidate(
        method=kind,
        rank=RANK,
        alpha=ALPHA,
        targets=("all-linear",),
        format="fp32",
        compute="fp32",
        batch_size=ROWS,
        sequence_length=1,
        learning_rate=1e-2,
    )
    begin = start(base, candidate, None, seed=0)
    adapted = insert_adapters(base.graph.copied(), begin.owned, fold_frozen=True)
    optimizer = torch.optim.Adam(adapted.trainable.values(), lr=candidate.learning_rate)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(adapted.graph.module(points), wanted)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    adapter = uniform(
        method=kind,
        rank=RANK,
        alpha=ALPHA,
        targets=begin.owned.targets,
        tensors={name: p.detach().numpy() for name, p in adapted.trainable.items()},
        base_digest=DIGEST,
    )
    return SimpleNamespace(adapter=adapter, losses=losses)


@pytest.fixture(scope="module")
def trained(base: Base, points: torch.Tensor) -> dict[str, SimpleNamespace]:
    kinds = {"acme": "lora", "globex": "dora"}
    return {
        tenant: train(base, kind, points, classes(points, tenant)) for tenant, kind in kinds.items()
    }


@pytest.mark.parametrize("tenant", ["acme", "globex"])
def test_a_tenant_learns_what_the_base_does_not_know(
    base: Base, trained: dict[str, SimpleNamespace], points: torch.Tensor, tenant: str
) -> None:
    run, wanted = trained[tenant], classes(points, tenant).numpy()
    assert run.losses[-1] < run.losses[0] / 3
    learned = logits(reference_graph(base, of_adapter(run.adapter)), points).argmax(1)
    assert (learned == wanted).mean() > 0.95
    assert (logits(base.graph, points).argmax(1) == wanted).mean() < 0.7


def write_artifact(base: Base, tenants: dict[str, Adapter], out: Path) -> None:
    staging = staging_folder(out)
    staging.mkdir()
    ports = Port("x", ("batch", FEATURES)), Port("logits", ("batch", CLASSES))
    form = Form(Quadrants(), (torch.zeros(2, FEATURES),), ports[:1], ports[1:])
    captured = skeleton.write(form, out.with_suffix(".onnx"))
    sites = [target for target in base.targets if method("lora").tensors_for(target.role)]
    weights = dict(base.graph.module.state_dict())
    stored = write_unmerged(captured, weights, sites, staging, precision="exact")
    manifest = Manifest(
        kind="unmerged",
        task="module",
        base=BaseRecord(digest=DIGEST, name="quadrants"),
        format="fp32",
        precision="exact",
        sites=tuple(site_record(site, stored) for site in sites),
        inputs=("x", "bank", "slot"),
        outputs=("logits",),
        tenants={},
        files={},
    )
    for name, adapter in tenants.items():
        lowered = lower_onto(staging, manifest, adapter)
        write_tenant(staging / tenant_folder(name), bank_sites(manifest), adapter, lowered)
    records = {n: describe(n, a, i) for i, (n, a) in enumerate(tenants.items(), start=1)}
    update = {"tenants": records, "files": file_records(staging)}
    write_manifest(staging, manifest.model_copy(update=update))
    publish(staging, out)


def test_one_batch_of_base_and_tenants_has_the_logits_of_torch(
    base: Base, trained: dict[str, SimpleNamespace], points: torch.Tensor, tmp_path: Path
) -> None:
    adapters = {tenant: run.adapter for tenant, run in trained.items()}
    write_artifact(base, adapters, tmp_path / "out")
    session = Session.open(tmp_path / "out")
    rows = [("base", "acme", "globex")[index % 3] for index in range(ROWS)]
    found = session.run({"x": points.numpy()}, rows)["logits"]
    expected = {
        name: logits(reference_graph(base, of_adapter(a)), points) for name, a in adapters.items()
    } | {"base": logits(base.graph, points)}
    for index, name in enumerate(rows):
        np.testing.assert_allclose(found[index], expected[name][index], atol=1e-4, rtol=0)
