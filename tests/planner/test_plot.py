"""The pictures of a frontier: matplotlib's file and the self-contained page."""

import math
from itertools import product

import numpy as np

from planner.tradeoffs import Axis, Frontier, Point

GIB = 2.0**30
AXES = (
    Axis(key="quality_points", title="quality", unit="points", lower_is_better=False, limit=None),
    Axis(
        key="training_bytes",
        title="training memory",
        unit="bytes",
        lower_is_better=True,
        limit=24 * GIB,
    ),
    Axis(
        key="serving_bytes_per_tenant",
        title="serving memory per tenant",
        unit="bytes",
        lower_is_better=True,
        limit=None,
    ),
    Axis(
        key="latency_seconds",
        title="latency per token",
        unit="seconds",
        lower_is_better=True,
        limit=0.03,
    ),
    Axis(key="storage_bytes", title="storage", unit="bytes", lower_is_better=True, limit=None),
    Axis(
        key="training_seconds",
        title="training time",
        unit="seconds",
        lower_is_better=True,
        limit=None,
    ),
)
# Points against LoRA, trained share of a rank's LoRA parameters, extra activations, half-width.
METHODS = {
    "lora": (0.0, 1.0, 0.0, 1.6),
    "rslora": (0.1, 1.0, 0.01, 1.7),
    "dora": (0.6, 1.02, 0.9, 1.9),
    "pissa": (0.3, 1.0, 0.03, 2.0),
    "lora_plus": (0.2, 1.0, 0.02, 1.8),
    "vera": (-1.3, 0.02, 0.15, 2.2),
    "oft": (-0.4, 1.4, 0.5, 2.3),
    "ia3": (-2.9, 0.01, -0.1, 2.4),
    "bitfit": (-3.6, 0.01, -0.2, 2.6),
    "prefix_tuning": (-7.9, 0.1, -0.1, 3.0),
    "full": (0.9, 60.0, 0.3, 1.8),
}
WEIGHTS = {"bf16": 16.0, "nf4": 5.1}
FORMS = {"unmerged": 1.12, "merged": 1.0}
TARGETS = {"all-linear": (1.0, 0.0), "attention.query, attention.value": (0.25, -1.5)}


def candidates() -> list[tuple[dict[str, object], dict[str, float | None], float]]:
    """Choice, values and half-width for an 8B model and 20 tenants, by rough formulas."""
    found = []
    grid = product(METHODS, (4, 16, 64), WEIGHTS, FORMS, TARGETS, ("none", "block"))
    for method, rank, format_, export, targets, checkpointing in grid:
        points, share, extra, half_width = METHODS[method]
        part, lost = TARGETS[targets]
        full = method == "full"
        if full and (rank, format_, export, part) != (4, "bf16", "merged", 1.0):
            continue
        own = 0.0026 * rank * 4 * share * part
        activations = (9.0 + 2 * extra) * (0.25 if checkpointing == "block" else 1.0)
        merged = export == "merged"
        slope = 0.45 * math.log2(rank / 64) if 0.5 < share < 10 else 0.0
        found.append(
            (
                {
                    "method": method,
                    "rank": None if full else rank,
                    "targets": [targets],
                    "format": format_,
                    "export": export,
                    "precision": "exact",
                    "batch_size": 4,
                    "gradient_accumulation": 4,
                    "checkpointing": checkpointing,
                },
                {
                    "quality_points": points + lost + slope - 0.9 * (format_ == "nf4"),
                    "training_bytes": GIB * (WEIGHTS[format_] + 4 * own + activations),
                    "serving_bytes_per_tenant": GIB * (WEIGHTS[format_] if merged else own),
                    "latency_seconds": None
                    if method == "prefix_tuning"
                    else 0.0016 * WEIGHTS[format_] * FORMS[export] + 0.003 * own,
                    "storage_bytes": GIB * WEIGHTS[format_] * (20 if merged else 1)
                    + 20 * GIB * own / 2 * (not merged),
                    "training_seconds": (5200 + 900 * extra + 30 * rank * part)
                    * (1.3 if checkpointing == "block" else 1.0)
                    * (1.25 if format_ == "nf4" else 1.0),
                },
                half_width,
            )
        )
    return found


def sample() -> Frontier:
    """A frontier as the planner writes it: limits kept or broken, dominance, a choice."""
    found = candidates()
    signs = np.array([1 if axis.lower_is_better else -1 for axis in AXES])
    table = np.array([[v[a.key] or 1.0 for a in AXES] for _, v, _ in found]) * signs
    broken = [
        tuple(
            f"needs {v[a.key]} of {a.title}" for a in AXES if a.limit and (v[a.key] or 0) > a.limit
        )
        for _, v, _ in found
    ]
    feasible = np.array([not b for b in broken])
    points = []
    for index, (candidate, values, half_width) in enumerate(found):
        worse = (table <= table[index]).all(1) & (table < table[index]).any(1) & feasible
        rank = f" r{candidate['rank']}" if candidate["rank"] else ""
        points.append(
            Point(
                id=100 + index,
                label=f"{candidate['method']}{rank} on {candidate['targets'][0]}, "
                f"{candidate['format']} base, {candidate['export']}",
                candidate=candidate,
                values=values,
                quality_half_width=half_width,
                feasible=bool(feasible[index]),
                broken=broken[index],
                on_frontier=bool(feasible[index] and not worse.any()),
                dominated_by=100 + int(np.argmax(worse)) if worse.any() else None,
                evidence_ids=("claim-tuned", "claim-noise"),
            )
        )
    chosen = next(
        p.id
        for p in points
        if p.candidate["method"] == "lora"
        and p.candidate["rank"] == 16
        and p.candidate["export"] == "unmerged"
        and p.feasible
        and p.on_frontier
    )
    return Frontier(
        model="Llama-3.1-8B", task="causal_lm", axes=AXES, points=tuple(points), chosen=chosen
    )
