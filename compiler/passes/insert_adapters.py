"""linear(x, W)  ->  the method's update around linear(x, W), traced from its algebra"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer

from compiler.frozen_linear import low_rank_linear
from compiler.graph import ATEN, Graph, Linear, attribute, linears, rebuilt
from planner.errors import IncompatibleError
from planner.method import Method, Site, Target, TensorSpec
from planner.update import LowRank, Part, Update, apply, delta

ADAPTERS = "adapters"


@dataclass(frozen=True)
class Adapted:
    """A graph with adapters, and its trained parameters by adapter key."""

    graph: Graph
    trainable: Mapping[str, nn.Parameter]
    learning_rate_multipliers: Mapping[str, float]


@dataclass(frozen=True)
class Tensors:
    """A method's initial tensors, by adapter key, and the scaling they are used with."""

    method: Method
    targets: tuple[Target, ...]
    values: Mapping[str, torch.Tensor]
    scalings: Mapping[str, float]


def insert_adapters(graph: Graph, tensors: Tensors, *, fold_frozen: bool) -> Adapted:
    """Wrap every target's linear in the method's update.

    With `fold_frozen`, pairs that hold no trainable tensor are folded into a copy of the dense
    base weight, which is how PiSSA trains on the residual; the graph computes the same.
    """
    holder = _holder(graph)
    parameters = {key: _register(holder, key, tensors) for key in tensors.values}
    by_name = {target.name: target for target in tensors.targets}
    found = linears(graph)
    missing = by_name.keys() - {linear.name for linear in found}
    if missing and tensors.method.tensors:
        raise IncompatibleError(f"the graph has no linear '{min(missing)}' to adapt")
    for linear in found:
        if linear.name in by_name and tensors.method.tensors:
            _adapt(graph, linear, by_name[linear.name], tensors, fold_frozen=fold_frozen)
    trainable = {key: p for key, p in parameters.items() if p.requires_grad}
    multipliers = {key: _spec(tensors, key).learning_rate_multiplier for key in trainable}
    return Adapted(rebuilt(graph), trainable, multipliers)


def _holder(graph: Graph) -> nn.Module:
    holder = getattr(graph.module, ADAPTERS, None)
    if holder is None:
        holder = nn.Module()
        graph.module.add_submodule(ADAPTERS, holder)
    return holder


def _spec(tensors: Tensors, key: str) -> TensorSpec:
    name = key.rpartition(".")[2]
    return next(spec for spec in tensors.method.tensors if spec.name == name)


def slot_name(key: str) -> str:
    """A module attribute for an adapter key, whose dots would read as nested modules."""
    return key.replace(".", "/")


def _register(holder: nn.Module, key: str, tensors: Tensors) -> nn.Parameter:
    value = tensors.values[key].detach().clone()
    parameter = nn.Parameter(value, requires_grad=_spec(tensors, key).trainable)
    holder.register_parameter(slot_name(key), parameter)
    return parameter


def _adapt(
    graph: Graph, linear: Linear, target: Target, tensors: Tensors, *, fold_frozen: bool
) -> None:
    node, tracer = linear.node, GraphAppendingTracer(graph.module.graph)
    dtype = attribute(graph.module, linear.weight).dtype
    with graph.module.graph.inserting_before(node):
        x, weight, *biases = (fx.Proxy(value, tracer) for value in node.all_input_nodes)
        bias = biases[0] if biases else None
        owned = {
            _leaf(key): _cast(fx.Proxy(_read(graph, slot_name(key)), tracer), dtype)
            for key in _keys(tensors, target)
        }
        site = Site(target, weight, bias, tensors.scalings.get(target.name, 1.0))
        update = tensors.method.update(owned, site)
        frozen = [i for i, part in enumerate(update) if _is_frozen_pair(graph, part)]
        if fold_frozen and frozen:
            edited = _fold(graph, linear, target, tensors, frozen)
            weight = fx.Proxy(_read(graph, edited), tracer)
            update = tuple(part for i, part in enumerate(update) if i not in frozen)
        y = _emit(update, x, weight, bias, (linear.out_features, linear.in_features))
    node.replace_all_uses_with(y.node)
    graph.module.graph.erase_node(node)


def _read(graph: Graph, name: str) -> fx.Node:
    return graph.module.graph.get_attr(f"{ADAPTERS}.{name}")


def _cast(value: fx.Proxy, dtype: torch.dtype) -> fx.Proxy:
    """The fp32 master in the graph's dtype."""
    return value if dtype == torch.float32 else value.to(dtype)


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _keys(tensors: Tensors, target: Target) -> list[str]:
    own = [f"{target.name}.{spec.name}" for spec in tensors.method.tensors_for(target.role)]
    return [*own, *(spec.name for spec in tensors.method.model_tensors())]


def _emit(
    update: Update, x: fx.Proxy, weight: fx.Proxy, bias: fx.Proxy | None, shape: tuple[int, int]
) -> fx.Proxy:
    if len(update) == 1 and _is_plain_pair(pair := update[0]):
        return _call(x, low_rank_linear, x, pair.a, pair.b, bias, shape, weight)

    def linear(value: fx.Proxy, matrix: fx.Proxy) -> fx.Proxy:
        return _call(x, ATEN.linear.default, value, matrix)

    y: fx.Proxy = apply(update, x, lambda value: linear(value, weight), linear)
    return y if bias is None else _call(x, operator.add, y, bias)


def _is_plain_pair(part: Part) -> TypeGuard[LowRank]:
    return isinstance(part, LowRank) and part.latent_scale is None and part.output_scale is None


def _call(like: fx.Proxy, function: Callable[..., object], *arguments: object) -> fx.Proxy:
    proxy: fx.Proxy = like.tracer.create_proxy("call_function", function, arguments, {})
    return proxy


def _fold(graph: Graph, linear: Linear, target: Target, tensors: Tensors, frozen: list[int]) -> str:
    """Register the base weight with the frozen pairs added; returns the attribute's name."""
    values = {_leaf(key): tensors.values[key] for key in _keys(tensors, target)}
    dense = attribute(graph.module, linear.weight)
    site = Site(target, dense, None, tensors.scalings.get(target.name, 1.0))
    parts = tensors.method.update(values, site)
    pairs = [part for i in frozen if isinstance(part := parts[i], LowRank)]
    name = slot_name(f"{target.name}.weight")
    edited = dense + sum(delta(pair) for pair in pairs)
    _holder(graph).register_buffer(name, edited, persistent=False)
    return name


def _is_frozen_pair(graph: Graph, part: Part) -> bool:
    """Whether a plain pair depends on no trained tensor."""
    if not _is_plain_pair(part):
        return False
    stack = [part.a.node, part.b.node]
    while stack:
        node = stack.pop()
        if node.op == "get_attr" and attribute(graph.module, str(node.target)).requires_grad:
            return False
        stack.extend(node.all_input_nodes)
    return True
