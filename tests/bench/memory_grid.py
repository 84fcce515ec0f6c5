"""Peaks of the dry run over models x methods x formats x checkpointing x batches, as JSON.

    python tests/bench/memory_grid.py grid.json [MODEL ...]

A point is written as soon as it is known, and a run goes on where the file ends. The planner's
closed form is held against these points.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from compiler.simulate import capture_depths, dry_run, training_graphs
from planner import catalog
from planner.method import method
from planner.plan import Candidate, Training

MODELS = {
    "smollm2-135m": "bf16",
    "llama-3.1-8b": "bf16",
    "llama-3.1-70b": "bf16",
    "qwen2.5-0.5b": "bf16",
    "bert-base": "bf16",
    "llama-3.2-1b": "bf16",
    "qwen2.5-7b": "bf16",
    "llama-2-7b": "bf16",
    "smollm2-360m": "fp32",
    "llama-3.2-3b": "bf16",
    "qwen3-8b": "bf16",
    "mistral-7b": "bf16",
    "roberta-base": "fp32",
    "pythia-160m": "bf16",
    "qwen1.5-moe-a2.7b": "bf16",
}
"""The arithmetic of each model's points."""
ATTENTION_ONLY = ("attention.query", "attention.value")
LABELS = 3


class Choice(NamedTuple):
    """What a training graph is made of."""

    method: str
    format: str
    checkpointing: str
    rank: int | None = None
    targets: tuple[str, ...] = ("all-linear",)


class Cut(NamedTuple):
    """How much goes through it at once."""

    batch_size: int
    sequence_length: int
    gradient_accumulation: int
    loss: str


CHOICES = (
    Choice("lora", "bf16", "none", 16),
    Choice("lora", "nf4", "block", 16),
    Choice("lora", "nf4", "none", 64),
    Choice("lora", "bf16", "block", 8, ATTENTION_ONLY),
    Choice("dora", "bf16", "none", 16),
    Choice("dora", "nf4", "block", 16),
    Choice("vera", "bf16", "none", 256),
    Choice("ia3", "bf16", "none", None, ("attention.key", "attention.value", "mlp.down")),
    Choice("ia3", "nf4", "block", None, ("attention.key", "attention.value", "mlp.down")),
    Choice("full", "bf16", "none"),
    Choice("full", "bf16", "block"),
    Choice("pissa", "bf16", "block", 32),
    Choice("bitfit", "bf16", "none"),
)
CUTS = (
    Cut(1, 512, 1, "chunked"),
    Cut(8, 1024, 2, "chunked"),
)
MORE_CUTS = (
    Cut(4, 768, 2, "full"),
    Cut(2, 2048, 1, "chunked"),
)
"""For the first two choices as well."""


def points(model: str, done: set[str]) -> Iterator[dict[str, Any]]:
    """Every point of a model that is not among the keys `done`; of choices whose targets it has."""
    found, compute = catalog.model(model), MODELS[model]
    known = {"all-linear", *(target.role for target in found.architecture.targets)}
    choices = [choice for choice in CHOICES if known.issuperset(choice.targets)]
    causal = found.architecture.kind == "decoder"
    longest = 512 if not causal else min(2048, found.architecture.positions)
    wanted = [
        (choice, cut)
        for choice in choices
        for cut in (*CUTS, *(MORE_CUTS if causal and choice in CHOICES[:2] else ()))
    ]
    wanted = [(c, _fitted(cut, longest)) for c, cut in wanted]
    if all(key(model, choice, cut) in done for choice, cut in wanted):
        return
    task = "causal_lm" if causal else "sequence_classification"
    captured = capture_depths(found.config, task, LABELS, compute, longest)
    for choice in choices:
        cuts = [cut for other, cut in wanted if other is choice]
        cuts = [cut for cut in cuts if key(model, choice, cut) not in done]
        graphs = None
        for cut in cuts:
            started, candidate = time.perf_counter(), _candidate(choice, cut, compute)
            graphs = graphs or training_graphs(captured, candidate, gpu=True)
            result = dry_run(captured, graphs, candidate, Training(), gpu=True, loss=cut.loss)
            yield {
                "key": key(model, choice, cut),
                "model": model,
                "task": task,
                "labels": None if causal else LABELS,
                "parameters": found.architecture.parameters,
                "loss": cut.loss,
                "candidate": candidate.model_dump(),
                "peak_allocated_bytes": result.peak_allocated_bytes,
                "phase": result.phase,
                "micro_batch": result.micro_batch,
                "by_kind": dict(result.by_kind),
                "phases": dict(result.phases),
                "layers": result.layers,
                "simulated_layers": result.simulated_layers,
                "seconds": round(time.perf_counter() - started, 2),
            }


def key(model: str, choice: Choice, cut: Cut) -> str:
    targets = "all" if choice.targets == ("all-linear",) else "+".join(choice.targets)
    parts = (choice.method, choice.format, choice.checkpointing, choice.rank, targets, *cut)
    return "/".join(map(str, (model, MODELS[model], *parts)))


def _fitted(cut: Cut, longest: int) -> Cut:
    return cut._replace(sequence_length=min(cut.sequence_length, longest))


def _candidate(choice: Choice, cut: Cut, compute: str) -> Candidate:
    chosen = method(choice.method)
    return Candidate.model_validate(
        {
            "method": choice.method,
            "rank": choice.rank,
            "alpha": None if chosen.scaling is None else 2.0 * (choice.rank or 1),
            "targets": choice.targets,
            "format": "fp32" if compute == "fp32" and choice.format == "bf16" else choice.format,
            "compute": compute,
            "batch_size": cut.batch_size,
            "gradient_accumulation": cut.gradient_accumulation,
            "sequence_length": cut.sequence_length,
            "checkpointing": choice.checkpointing,
            "optimizer": "paged_adamw8bit" if choice.rank == 64 else "adamw",
            "learning_rate": 1e-4,
        }
    )


def main(path: Path, models: list[str]) -> None:
    rows = json.loads(path.read_text("utf-8")) if path.exists() else []
    done = {row["key"] for row in rows}
    for model in models or list(MODELS):
        for row in points(model, done):
            rows.append(row)
            aside = path.with_suffix(".part")
            aside.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", "utf-8")
            os.replace(aside, path)
            print(f"{len(rows):4} {row['seconds']:6.1f} s  {row['key']}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
