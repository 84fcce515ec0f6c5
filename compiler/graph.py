"""The captured graph and the few questions every pass asks of it."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import fx

ATEN = torch.ops.aten


@dataclass(frozen=True)
class Graph:
    """An aten-level graph module and the names of its inputs, in order."""

    module: fx.GraphModule
    inputs: tuple[str, ...]

    def copied(self) -> "Graph":
        """A graph that can be rewritten on its own; the parameters stay shared."""
        return Graph(fx.GraphModule(self.module, flat(self.module.graph)), self.inputs)


@dataclass(frozen=True)
class Linear:
    """One `aten.linear`: x [..., in] -> [..., out], weight [out, in]."""

    node: fx.Node
    name: str
    weight: str
    bias: str | None
    out_features: int
    in_features: int

    @property
    def input(self) -> fx.Node:
        return cast(fx.Node, self.node.args[0])


def flat(graph: fx.Graph) -> fx.Graph:
    """A copy that takes tensors one by one and returns its only value as it is."""
    copied = fx.Graph()
    values = copied.graph_copy(graph, {})
    copied.output(values[0] if isinstance(values, tuple) and len(values) == 1 else values)
    return copied


def attribute(module: torch.nn.Module, path: str) -> torch.Tensor:
    """The parameter or buffer at a dotted path."""
    *parents, leaf = path.split(".")
    for parent in parents:
        module = getattr(module, parent)
    return cast(torch.Tensor, getattr(module, leaf))


def linears(graph: Graph) -> tuple[Linear, ...]:
    """Every linear whose weight is a parameter, in execution order.

    The name is the weight's path without ".weight": training and inference captures of one model
    meet by it. Two linears that share a weight share the name.
    """
    return tuple(
        _linear(graph, node)
        for node in graph.module.graph.nodes
        if node.target is ATEN.linear.default and node.args[1].op == "get_attr"
    )


def _linear(graph: Graph, node: fx.Node) -> Linear:
    weight = cast(fx.Node, node.args[1])
    bias = cast(fx.Node | None, node.args[2]) if len(node.args) > 2 else None
    path = str(weight.target)
    out_features, in_features = attribute(graph.module, path).shape
    return Linear(
        node=node,
        name=path.removesuffix(".weight"),
        weight=path,
        bias=None if bias is None else str(bias.target),
        out_features=out_features,
        in_features=in_features,
    )


def rebuilt(graph: Graph) -> Graph:
    """The graph after a rewrite: dead nodes removed, checked and recompiled."""
    graph.module.graph.eliminate_dead_code()
    graph.module.graph.lint()
    graph.module.recompile()
    return graph
