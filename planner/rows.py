"""The row that a runtime's bank holds for an adapter, where it is not as long as the adapter."""

from functools import lru_cache

from planner.architecture import Architecture
from planner.cost.adapter import AdapterCost, TargetSet, adapter_cost, lora_rank, target_set
from planner.cost.trace import FLOAT_BYTES
from planner.method import ALL_LINEAR, EXPERTS, Method, method
from planner.runtime import limits_of
from planner.scenario import Scenario


def in_bank(
    scenario: Scenario, found: Method, rank: int | None, linears: TargetSet, cost: AdapterCost
) -> AdapterCost:
    """The cost with its row as the scenario's runtime allocates, reads and multiplies it."""
    limits = limits_of(scenario.spec.serving.runtime, scenario.serving.kind)
    if not limits.row_ranks or not cost.row_bytes:
        return cost
    shape = scenario.architecture
    pair = lora_rank(found, rank, linears, shape)
    if pair is None or pair > limits.row_ranks[-1]:
        return cost
    held = next(each for each in limits.row_ranks if each >= pair)
    return cost._replace(
        **_allocated(held, shape, embeds=shape.model_type in limits.row_embeddings)
    )


@lru_cache(maxsize=64)
def _allocated(rank: int, shape: Architecture, *, embeds: bool) -> dict[str, int]:
    """Of pairs for every linear, and for embedding and head where those have them too.

    A token reads the pairs of the experts that it is routed to, and of an embedding one row.
    """
    dense = _pairs(rank, shape, (*ALL_LINEAR, "router"))
    whole = _pairs(rank, shape, (*ALL_LINEAR, "router", *EXPERTS))
    experts = whole.row_bytes - dense.row_bytes
    embedded = FLOAT_BYTES * rank * (shape.vocab + shape.hidden) if embeds else 0
    unread = experts * (shape.experts - shape.experts_per_token) // max(1, shape.experts)
    return {
        "row_bytes": whole.row_bytes + 2 * embedded,
        "unread_row_bytes": unread + embedded,
        "served_multiplications": whole.served_multiplications,
    }


def _pairs(rank: int, shape: Architecture, roles: tuple[str, ...]) -> AdapterCost:
    linears = target_set(tuple(t for t in shape.targets if t.role in roles))
    return adapter_cost(method("lora"), rank, linears, shape)
