"""Spec in, plan out: which PEFT method, rank, format and export a task and its hardware ask for.

    from planner import Spec, recommend
    plan = recommend(Spec(model="llama-3.1-8b", task="causal_lm", vram_gib=24))

Names are loaded on first use, so that importing a light part of the package stays light.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.case import Case
    from planner.estimation import Estimate, estimate
    from planner.plan import Candidate, Figure, Plan, Rejection, Training
    from planner.recommendation import recommend
    from planner.spec import Spec
    from planner.tradeoffs import Frontier, dominance_graph, frontier

_HOMES = {
    "Candidate": "planner.plan",
    "Case": "planner.case",
    "Estimate": "planner.estimation",
    "Figure": "planner.plan",
    "Frontier": "planner.tradeoffs",
    "Plan": "planner.plan",
    "Rejection": "planner.plan",
    "Spec": "planner.spec",
    "Training": "planner.plan",
    "dominance_graph": "planner.tradeoffs",
    "estimate": "planner.estimation",
    "frontier": "planner.tradeoffs",
    "recommend": "planner.recommendation",
}

__all__ = [
    "Candidate",
    "Case",
    "Estimate",
    "Figure",
    "Frontier",
    "Plan",
    "Rejection",
    "Spec",
    "Training",
    "dominance_graph",
    "estimate",
    "frontier",
    "recommend",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
