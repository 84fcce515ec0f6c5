"""linear(x, W)  ->  the method's update around linear(x, W), traced from its algebra"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer

from compiler.frozen_linear import low_rank_linear
from compiler.graph import ATEN, Graph, Linear, attribute, linears, rebuilt
from planner.method import Method, Site, Target
from planner.update import LowRank, Part, Update, apply, delta

ADAPTERS = "adapters"


@dataclass(frozen=True)
class Adapted:
    """A graph with adapters: the trainable parameters and the frozen tensors, by adapter key."""

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
    parameters = {key: _register(holder, key, value, tensors) for key, value in tensors.values.items()}
    by_name = {target.name: target for target in tensors.targets}
    for linear in linears(graph):
        if linear.name in by_name:
            _adapt(graph, linear, by_name[linear.name], tensors, fold_frozen=fold_frozen)
    trainable = {key: p for key, p in parameters.items() if p.requires_grad}
    rates = {_spec(tensors.method, key).name: _spec(tensors.method, key) for key in trainable}
    return Adapted(
        rebuilt(graph),
        trainable,
        {key: rates[key.rpartition(".")[2]].learning_rate_multiplier for key in trainable},
    )


def _holder(graph: Graph) -> nn.Module:
    holder = getattr(graph.module, ADAPTERS, None)
    if holder is None:
        holder = nn.Module()
        graph.module.add_submodule(ADAPTERS, holder)
    return holder


def _spec(method: Method, key: str):  # noqa: ANN202
    name = key.rpartition(".")[2]
    return next(spec for spec in method.tensors if spec.name == name)


def slot_name(key: str) -> str:
    """A module attribute for an adapter key, whose dots would read as nested modules."""
    return key.replace(".", "/")


def _register(holder: nn.Module, key: str, value: torch.Tensor, tensors: Tensors) -> nn.Parameter:
    trainable = _spec(tensors.method, key).trainable
    parameter = nn.Parameter(value.detach().clone(), requires_grad=trainable)
    holder.register_parameter(slot_name(key), parameter)
    return parameter


def _adapt(
    graph: Graph, linear: Linear, target: Target, tensors: Tensors, *, fold_frozen: bool
) -> None:
    node, tracer = linear.node, GraphAppendingTracer(graph.module.graph)
    dtype = attribute(graph.module, linear.weight).dtype

    def proxy(value: fx.Node) -> fx.Proxy:
        return fx.Proxy(value, tracer)

    with graph.module.graph.inserting_before(node):
        owned = {}
        for key in _keys(tensors, target):
            value = proxy(graph.module.graph.get_attr(f"{ADAPTERS}.{slot_name(key)}"))
            name = key.rpartition(".")[2]
            owned[name] = value if dtype == torch.float32 else value.to(dtype)
        x, weight = proxy(linear.input), proxy(node.args[1])
        bias = proxy(node.args[2]) if linear.bias is not None else None
        site = Site(target, weight, bias, tensors.scalings.get(target.name, 1.0))
        update = tensors.method.update(owned, site)
        if fold_frozen:
            update, weight = _fold_frozen(graph, linear, target, tensors, update, weight, proxy)
        y = _emit(update, x, weight, bias, linear.out_features)
    node.replace_all_uses_with(y.node)
    graph.module.graph.erase_node(node)


def _keys(tensors: Tensors, target: Target) -> list[str]:
    own = [f"{target.name}.{spec.name}" for spec in tensors.method.tensors_for(target.role)]
    return own + [spec.name for spec in tensors.method.model_tensors()]


def _emit(
    update: Update, x: fx.Proxy, weight: fx.Proxy, bias: fx.Proxy | None, out_features: int
) -> fx.Proxy:
    if len(update) == 1 and _plain_pair(update[0]):
        pair = update[0]
        return _call(x, low_rank_linear, x, pair.a, pair.b, bias, out_features, weight)

    def linear(value: fx.Proxy, matrix: fx.Proxy) -> fx.Proxy:
        return _call(x, ATEN.linear.default, value, matrix)

    y: fx.Proxy = apply(update, x, lambda value: linear(value, weight), linear)
    return y if bias is None else y + bias


def _plain_pair(part: Part) -> bool:
    return isinstance(part, LowRank) and part.latent_scale is None and part.output_scale is None


def _call(like: fx.Proxy, function: object, *arguments: object) -> fx.Proxy:
    proxy: fx.Proxy = like.tracer.create_proxy("call_function", function, arguments, {})
    return proxy


def _fold_frozen(
    graph: Graph, linear: Linear, target: Target, tensors: Tensors, update: Update,
    weight: fx.Proxy, proxy,  # noqa: ANN001
) -> tuple[Update, fx.Proxy]:
    frozen = [i for i, part in enumerate(update) if _frozen_pair(graph, part)]
    if not frozen:
        return update, weight
    values = {key.rpartition(".")[2]: tensors.values[key] for key in _keys(tensors, target)}
    dense = attribute(graph.module, linear.weight)
    site = Site(target, dense, None, tensors.scalings.get(target.name, 1.0))
    parts = tensors.method.update(values, site)
    edited = dense + sum(delta(parts[i]) for i in frozen)
    name = slot_name(f"{target.name}.weight")
    _holder(graph).register_buffer(name, edited, persistent=False)
    kept = tuple(part for i, part in enumerate(update) if i not in frozen)
    return kept, proxy(graph.module.graph.get_attr(f"{ADAPTERS}.{name}"))


def _frozen_pair(graph: Graph, part: Part) -> bool:
    """Whether a pair depends on adapter tensors of which none is trained, nor shared."""
    if not isinstance(part, LowRank) or not _plain_pair(part):
        return False
    stack, trained = [part.a.node, part.b.node], False
    while stack:
        node = stack.pop()
        if node.op == "get_attr":
            trained = trained or attribute(graph.module, str(node.target)).requires_grad
        stack.extend(node.all_input_nodes)
    return not trained
