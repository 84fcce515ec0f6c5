"""An adapter's exact counts and bytes over all its targets."""

import math
from typing import NamedTuple

from planner.architecture import Architecture
from planner.architecture.record import UNFORMATTED
from planner.cost.sites import Sites, TargetSet, model_lengths, owns, sites, target_set
from planner.cost.trace import FLOAT_BYTES, SiteCost, declared_cost, linear_cost
from planner.method import Method, Scope

__all__ = ["AdapterCost", "TargetSet", "adapter_cost", "lora_rank", "misfit", "target_set"]

DIRECTORY_BYTES = 12 * 8
"""One site's entry in a row's directory: twelve 64-bit integers."""

INPUT_OF_ROLE = {
    "attention.query": "attention",
    "attention.key": "attention",
    "attention.value": "attention",
    "attention.qkv": "attention",
    "linear": "attention",
    "attention.output": "attended",
    "mlp.gate": "mlp",
    "mlp.up": "mlp",
    "mlp.gate_up": "mlp",
    "mlp.down": "inner",
}
"""Linears of one input keep it once."""

FUSIBLE = ("attention.query", "attention.key", "attention.value")
"""Linears that a framework may make one of."""

Places = dict[Scope, list[Sites]]


class AdapterCost(NamedTuple):
    """Of one method, size and set of targets.

    trainable_parameters        exact; of a method that trains the base, the base's too
    stored_bytes                of a tenant's fp32 file; a trained base is not counted
    shared_bytes                of frozen tensors that all tenants share
    row_bytes                   of a tenant in the bank; 0 where it can only be merged
    unread_row_bytes            of `row_bytes` what a sequence's tokens do not read
    multiplications             per token in training
    saved_elements              per token, from the forward to the backward pass
    saved_outputs               of `saved_elements` what the base gave, before it is scaled
    served_multiplications      per token served unmerged
    pass_multiplications        per pass, whatever the tokens: forming a dense update
    pass_elements               from the forward to the backward pass, whatever the tokens
    workspace_elements          live at one site at a time
    input_tokens, cache_tokens  positions added to every sequence, or to its keys and values only
    forward_passes              of the base, where another takes one
    optimizer_elements          numbers that the moments of AdamW, or their projections, hold
    shared_inputs, own_inputs   of `saved_elements` the inputs of adapted linears, each once for all
                                that keep it; and what they would be if every one kept its own
    repeated_inputs             of `own_inputs` those of query, key and value but for one of them
    partial_outputs             outputs of query, key and value, where some of the three are adapted
    dropped_inputs              inputs of adapted linears that the method can drop some of
    inner_inputs                of `shared_inputs` those of the MLP's last linear
    attended_inputs             inputs of the attention's last linear, among `own_inputs` only: an
                                attention may keep its output itself
    reaches_attention           1 where the first block's attention needs a gradient, 0 where the
                                method adapts MLPs alone
    reaches_mlp                 likewise of its MLP, 0 where the method adapts attention alone and
                                the MLP is beside it
    read_elements               of the adapters in one pass, shared ones for every linear they serve
    """

    trainable_parameters: int
    stored_bytes: int
    shared_bytes: int
    row_bytes: int
    multiplications: int
    saved_elements: int
    served_multiplications: int = 0
    pass_multiplications: int = 0
    pass_elements: int = 0
    workspace_elements: int = 0
    input_tokens: int = 0
    cache_tokens: int = 0
    forward_passes: int = 1
    optimizer_elements: int = 0
    shared_inputs: int = 0
    own_inputs: int = 0
    inner_inputs: int = 0
    read_elements: int = 0
    reaches_attention: int = 1
    repeated_inputs: int = 0
    partial_outputs: int = 0
    dropped_inputs: int = 0
    attended_inputs: int = 0
    reaches_mlp: int = 1
    saved_outputs: int = 0
    unread_row_bytes: int = 0


def adapter_cost(
    method: Method, rank: int | None, targets: TargetSet, shape: Architecture
) -> AdapterCost:
    """Exact for counts and bytes; `targets` are the linears the method really adapts.

    `rank` is the method's size, whatever it counts.
    """
    lengths = model_lengths(method, rank, targets, shape)
    scopes: set[Scope] = {"target", *(spec.scope for spec in method.tensors), *method.costs}
    places: Places = {scope: sites(scope, lengths, targets, shape) for scope in scopes}
    costs = _costs(method, places)
    trained, stored, shared = _numbers(method, places)
    tokens = lengths[method.size] * lengths["stacks"]
    inputs = _saved_inputs(costs)
    attended = inputs.pop("attended", 0)
    alone = _adapted_alone(method, scopes, targets)
    rows = DIRECTORY_BYTES * targets.site_count
    multiplications = served = saved = pass_multiplications = pass_elements = 0
    own_inputs = dropped = saved_outputs = 0
    for cost, at in costs:
        rows += at.copies * cost.row_bytes
        multiplications += at.passed * cost.multiplications
        served += at.passed * cost.served_multiplications
        saved += at.passed * cost.saved_elements
        saved_outputs += at.passed * cost.saved_outputs
        pass_multiplications += at.copies * cost.pass_multiplications
        pass_elements += at.copies * cost.pass_elements
        if at.target is not None:
            own_inputs += at.passed * at.target.in_features * cost.saves_input
            dropped += at.passed * at.target.in_features * method.drops_input
    shared_inputs = sum(inputs.values())
    fusible = _fusible(costs)
    return AdapterCost(
        trainable_parameters=trained + (shape.parameters if method.trains_base else 0),
        stored_bytes=FLOAT_BYTES * stored,
        shared_bytes=FLOAT_BYTES * shared,
        row_bytes=rows if "unmerged" in method.serves else 0,
        multiplications=multiplications,
        saved_elements=saved + shared_inputs,
        served_multiplications=served,
        pass_multiplications=pass_multiplications,
        pass_elements=pass_elements,
        workspace_elements=max([cost.workspace_elements for cost, _ in costs], default=0),
        input_tokens=tokens if method.adds_tokens == "input" else 0,
        cache_tokens=tokens if method.adds_tokens == "cache" else 0,
        forward_passes=method.forward_passes,
        optimizer_elements=2 * trained + _base_optimizer_elements(method, lengths, shape),
        shared_inputs=shared_inputs,
        own_inputs=own_inputs,
        inner_inputs=inputs.get("inner", 0),
        read_elements=stored + shared * targets.site_count,
        reaches_attention=int(alone != "mlp"),
        repeated_inputs=fusible.repeated_inputs,
        partial_outputs=fusible.partial_outputs,
        dropped_inputs=dropped,
        attended_inputs=attended,
        reaches_mlp=int(alone != "attention" or not shape.parallel),
        saved_outputs=saved_outputs,
    )


def lora_rank(
    method: Method, rank: int | None, targets: TargetSet, shape: Architecture
) -> int | None:
    """The rank of the LoRA file that the adapter converts to, or None where there is none."""
    if method.converts_to is None:
        return None
    lengths = model_lengths(method, rank, targets, shape)
    ranks = (method.converts_to.rank(at.lengths) for at in sites("target", lengths, targets, shape))
    return max(ranks, default=None)


def misfit(method: Method, rank: int | None, targets: TargetSet, shape: Architecture) -> str | None:
    """Why some target cannot be adapted at that size, or None."""
    if method.misfit is None:
        return None
    lengths = model_lengths(method, rank, targets, shape)
    reasons = (method.misfit(at.lengths) for at in sites("target", lengths, targets, shape))
    return next((reason for reason in reasons if reason), None)


def _costs(method: Method, places: Places) -> list[tuple[SiteCost, Sites]]:
    """The cost at every place where the method does something."""
    found = [
        (linear_cost(method, at.target, at.lengths), at)
        for at in places["target"]
        if at.target is not None
    ]
    for scope, declared in method.costs.items():
        if scope != "target":
            found += [
                (declared_cost(method, declared(at.lengths), at.lengths), at)
                for at in places[scope]
            ]
    return found


def _adapted_alone(method: Method, scopes: set[Scope], targets: TargetSet) -> str | None:
    """The one part of a block that the method changes, "mlp" or "attention"; else None."""
    if method.trains_base or method.adds_tokens or scopes & {"norm", "layer"}:
        return None
    for part, prefixes in (("mlp", ("mlp.", "experts.")), ("attention", ("attention.",))):
        if all(role.startswith(prefixes) for role in targets.roles):
            return part
    return None


class Fusible(NamedTuple):
    repeated_inputs: int
    partial_outputs: int


def _fusible(costs: list[tuple[SiteCost, Sites]]) -> Fusible:
    """What an adapter of one fused product keeps less, and more, than one of each part of it."""
    inputs: list[int] = []
    roles: set[str] = set()
    outputs = 0
    for cost, at in costs:
        if cost.saves_input and at.target is not None and at.target.role in FUSIBLE:
            inputs.append(at.passed * at.target.in_features)
            outputs += at.passed * at.target.out_features
            roles.add(at.target.role)
    repeated = sum(inputs) - max(inputs, default=0)
    return Fusible(repeated, outputs if len(roles) < len(FUSIBLE) else 0)


def _saved_inputs(costs: list[tuple[SiteCost, Sites]]) -> dict[str, int]:
    """Elements per token of the linears' inputs by source, each once for all that keep it."""
    inputs: dict[str, int] = {}
    for cost, at in costs:
        if cost.saves_input and at.target is not None:
            source = INPUT_OF_ROLE.get(at.target.role, at.target.role)
            width = at.passed * at.target.in_features
            inputs[source] = max(inputs.get(source, 0), width)
    return inputs


def _numbers(method: Method, places: Places) -> tuple[int, int, int]:
    """How many numbers are trained, stored (nothing regenerates them) and shared by tenants."""
    trained = stored = shared = 0.0
    for spec in method.tensors:
        count = 0.0
        for at in places[spec.scope]:
            if owns(spec, at):
                count += at.copies * spec.share * math.prod(spec.resolve(at.lengths))
        trained += count if spec.trainable else 0
        stored += 0 if spec.seeded or spec.training_only else count
        shared += count if spec.scope == "model" and not spec.trainable else 0
    return round(trained), round(stored), round(shared)


def _base_optimizer_elements(method: Method, lengths: dict[str, int], shape: Architecture) -> int:
    """Two for each number of a trained base, or what the method says of its linears."""
    if not method.trains_base:
        return 0
    if method.optimizer_elements is None:
        return 2 * shape.parameters
    linears = target_set(tuple(t for t in shape.targets if t.role not in UNFORMATTED))
    kept = sum(
        at.copies * method.optimizer_elements(at.lengths)
        for at in sites("target", lengths, linears, shape)
    )
    return kept + 2 * (shape.parameters - shape.linear_parameters)
