"""How far the numbers of the demo's artifacts agree, on SmolLM2 itself.

  python tests/bench/bench_agreement.py [--demo build/demo] [--fixtures build/fixtures] [--json]

exits with 1 where a figure is outside its limit (LIMITS).

onnx ÷ torch   exact arithmetic in ONNX Runtime against transformers' own model holding the same
               weights (4-bit ones dequantised, the tenant folded in): the largest error of a logit
fast ÷ exact   the 4-bit artifact in both precisions over 2,000 held-out tokens: perplexity and
               top-1 agreement
mixed ÷ alone  base, a LoRA r4, a DoRA r16 and the artifact's own tenants in one batch, in every
               order of three rows, against each row alone: the largest error
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from transformers import AutoModelForCausalLM

from compiler import adapter as adapters
from compiler.data import encode, read
from compiler.engine import Engine, library_path
from compiler.frozen_weights import base_weight
from compiler.generation import negative_log_likelihood
from compiler.initializers import initialize
from compiler.manifest import BASE, Manifest
from compiler.merge import fold_row
from compiler.row import unpack_row
from compiler.session import Session
from compiler.tenant_graph import TenantGraph
from compiler.tenants import bank_sites, read_row
from planner.method import ALL_LINEAR, Target, method

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 2000
LENGTH = 192
FORMATS = ("fp32", "nf4")
LIMITS = {
    "against_torch": 1e-3,
    "mixed_against_alone": 1e-5,
    "perplexity_ratio": 0.02,
    "top1": 0.95,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=ROOT / "build/demo")
    parser.add_argument("--fixtures", type=Path, default=ROOT / "build/fixtures")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    demo, fixtures = arguments.demo, arguments.fixtures
    report = {
        "schema_version": 1,
        "limits": LIMITS,
        "against_torch": {name: against_torch(demo / name, fixtures) for name in FORMATS},
        "fast_against_exact": fast_against_exact(demo / "nf4", fixtures),
        "mixed_against_alone": {name: mixed_against_alone(demo / name) for name in FORMATS},
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    return int(not within(report))


def within(report: dict) -> bool:
    """Whether every figure keeps its limit."""
    fast = report["fast_against_exact"].values()
    return (
        max(max(rows.values()) for rows in report["against_torch"].values())
        <= LIMITS["against_torch"]
        and max(report["mixed_against_alone"].values()) <= LIMITS["mixed_against_alone"]
        and all(abs(r["fast"] / r["exact"] - 1) <= LIMITS["perplexity_ratio"] for r in fast)
        and all(r["top1"] >= LIMITS["top1"] for r in fast)
    )


def show(report: dict) -> None:
    for name, rows in report["against_torch"].items():
        for tenant, error in rows.items():
            print(f"{name}, {tenant}: largest error of a logit against torch {error:.2e}")
    for tenant, row in report["fast_against_exact"].items():
        print(
            f"{tenant}: {row['tokens']} tokens, perplexity {row['exact']:.3f} exact, "
            f"{row['fast']:.3f} fast ({100 * (row['fast'] / row['exact'] - 1):+.2f} %), "
            f"top-1 agreement {100 * row['top1']:.2f} %"
        )
    for name, error in report["mixed_against_alone"].items():
        print(f"{name}: largest error of a mixed batch against each row alone {error:.2e}")


def in_precision(folder: Path, precision: str) -> TenantGraph:
    """The artifact's graph with every 4-bit site in the given precision."""
    manifest: Manifest = Session.open(folder).manifest
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        inputs = [name for name in node.input if name.endswith(".codes")]
        for attribute in node.attribute:
            if attribute.name == "precision" and inputs:
                attribute.s = precision.encode()
    path = folder.parent / f"{folder.name}-{precision}.onnx"
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"{folder.name}/{entry.value}"
    path.write_bytes(model.SerializeToString())
    graph = TenantGraph(manifest, Engine(path, library=library_path(), threads=None))
    for name in manifest.tenants:
        graph.add(name, read_row(folder, name), manifest.tenants[name])
    return graph


def exact_graph(folder: Path) -> TenantGraph:
    """The artifact's own graph, or that of a fast artifact in exact arithmetic."""
    session = Session.open(folder)
    return (
        session._graph if session.manifest.precision == "exact" else in_precision(folder, "exact")
    )


def against_torch(folder: Path, fixtures: Path) -> dict[str, float]:
    """Per tenant and for the base, over four held-out texts of each tenant."""
    graph, session = exact_graph(folder), Session.open(folder)
    manifest = session.manifest
    texts = [
        example.input_ids[None]
        for data in manifest.tenants
        for example in encode(
            read(fixtures / "data" / f"{data}.held_out.jsonl", "causal_lm")[:4],
            session.tokenizer,
            LENGTH,
        ).examples
    ]
    model = AutoModelForCausalLM.from_pretrained(fixtures / "smollm2", dtype=torch.float32).eval()
    found = {}
    for tenant in (BASE, *manifest.tenants):
        hold(model, folder, manifest, tenant)
        with torch.no_grad():
            found[tenant] = max(
                float(np.abs(graph.logits(ids, np.ones_like(ids), [tenant]) - wanted).max())
                for ids in texts
                for wanted in [model(torch.from_numpy(ids)).logits.numpy()]
            )
    return found


def hold(model: torch.nn.Module, folder: Path, manifest: Manifest, tenant: str) -> None:
    """Give transformers' model the weights that the tenant is served with."""
    lowered = {} if tenant == BASE else unpack_row(bank_sites(manifest), read_row(folder, tenant))
    for site in manifest.sites:
        weight = base_weight(folder, manifest, site.name)
        if site.name in lowered:
            weight, shift = fold_row(lowered[site.name], weight)
            assert shift is None, "this model's linears have no bias"
        model.get_submodule(site.name).weight.data = torch.from_numpy(weight.copy())


def fast_against_exact(folder: Path, fixtures: Path) -> dict[str, dict[str, float]]:
    """Per tenant over the first 2,000 trained tokens of its held-out data, and for the base."""
    session = Session.open(folder)
    graphs = {precision: in_precision(folder, precision) for precision in ("exact", "fast")}
    found = {}
    for tenant, data in (("base", "faq"), ("definitions", "definitions"), ("faq", "faq")):
        records = read(fixtures / "data" / f"{data}.held_out.jsonl", "causal_lm")
        examples = encode(records, session.tokenizer, LENGTH).examples
        losses = {precision: [] for precision in graphs}
        same = total = 0
        for example in examples:
            ids = example.input_ids[None]
            mask = np.ones_like(ids)
            logits = {
                precision: graph.logits(ids, mask, [tenant])[0, :-1]
                for precision, graph in graphs.items()
            }
            tokens = example.input_ids[1:]
            for precision, values in logits.items():
                losses[precision].append(negative_log_likelihood(values, tokens))
            same += int((logits["exact"].argmax(-1) == logits["fast"].argmax(-1)).sum())
            total += len(tokens)
            if total >= TOKENS:
                break
        means = {name: float(np.concatenate(rows).mean()) for name, rows in losses.items()}
        found[tenant] = {
            "tokens": total,
            "exact": float(np.exp(means["exact"])),
            "fast": float(np.exp(means["fast"])),
            "top1": same / total,
        }
    return found


def random_adapter(session: Session, name: str, rank: int) -> adapters.Adapter:
    """An adapter of that method whose trained tensors are far from where they start."""
    chosen = method(name)
    targets = tuple(
        Target(site.name, site.role, site.out_features, site.in_features)
        for site in session.manifest.sites
        if site.role in ALL_LINEAR
    )

    def weight(site: str) -> torch.Tensor:
        return torch.from_numpy(base_weight(session.folder, session.manifest, site))

    tensors = initialize(chosen, targets, weight, rank, 2.0, seed=rank)
    generator = torch.Generator().manual_seed(rank)
    for tensor in tensors.values():
        tensor += 0.01 * torch.randn(tensor.shape, generator=generator)
    return adapters.uniform(
        method=name,
        rank=rank,
        alpha=2.0 * rank,
        targets=targets,
        tensors={key: tensor.numpy() for key, tensor in tensors.items()},
        base_digest=session.manifest.base.digest,
        seed=rank,
    )


def mixed_against_alone(folder: Path) -> float:
    """The largest absolute error of a logit over all orders of three tenants, in exact mode."""
    session = Session.open(folder)
    session.add_tenant("lora-r4", random_adapter(session, "lora", 4))
    session.add_tenant("dora-r16", random_adapter(session, "dora", 16))
    if session.manifest.precision == "fast":
        graph = in_precision(folder, "exact")
        for name in ("lora-r4", "dora-r16"):
            graph.add(name, session._graph.bank.lowered(name), session._graph.records[name])
    else:
        graph = session._graph
    ids = np.random.default_rng(0).integers(10, 40_000, (3, 24))
    mask = np.ones_like(ids)
    names = ("base", "definitions", "faq", "lora-r4", "dora-r16")
    alone = {
        (row, name): graph.logits(ids[row : row + 1], mask[:1], [name])[0]
        for row in range(3)
        for name in names
    }
    return max(
        float(np.abs(graph.logits(ids, mask, rows)[row] - alone[row, name]).max())
        for rows in itertools.permutations(names, 3)
        for row, name in enumerate(rows)
    )


if __name__ == "__main__":
    sys.exit(main())
