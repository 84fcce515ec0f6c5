"""f3(f2(f1(x)))  ->  recomputed(f3)(recomputed(f2)(recomputed(f1)(x)))

A block ends where one differentiable value alone is still needed, which is the residual stream
between layers, found by liveness and not by name. Only that value is kept for the backward pass;
everything inside a block is computed again (Chen et al., 2016, arXiv 1604.06174).
"""

from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.fx.passes.split_module import split_module
from torch.utils.checkpoint import checkpoint

from compiler.frozen_linear import frozen_linear, low_rank_linear
from compiler.graph import ATEN, Graph, attribute, rebuilt

ATTENTION = ATEN.scaled_dot_product_attention.default
LINEARS = {ATEN.linear.default, frozen_linear, low_rank_linear}
LINEARS_WITHOUT_ATTENTION = 4
"""The size of a block in a model whose layers cannot be counted by their attentions."""


class Recomputed(nn.Module):
    """A block whose inner values are not kept for the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = checkpoint(
            self.block, *values, use_reentrant=False, preserve_rng_state=False
        )
        return output


def checkpoint_blocks(graph: Graph) -> Graph:
    """Split the graph into blocks of about one layer and recompute each in the backward pass."""
    blocks = _assign_blocks(graph)
    last = max(blocks.values())
    module = split_module(graph.module, graph.module, lambda node: blocks[node])
    for name, block in list(module.named_children()):
        # What follows the last boundary feeds the loss at once: recomputing it saves nothing.
        if name.startswith("submod_") and name != f"submod_{last}":
            setattr(module, name, Recomputed(block))
    return rebuilt(Graph(module, graph.inputs))


def _assign_blocks(graph: Graph) -> dict[fx.Node, int]:
    nodes = list(graph.module.graph.nodes)
    attentions = sum(node.target is ATTENTION for node in nodes)
    total = sum(node.target in LINEARS for node in nodes)
    size = total // attentions if attentions else LINEARS_WITHOUT_ATTENTION
    blocks: dict[fx.Node, int] = {}
    block = held = 0
    for node, alone in zip(nodes, _alone(graph, nodes), strict=True):
        blocks[node] = block
        held += node.target in LINEARS
        if alone and held >= size:
            block, held = block + 1, 0
    return blocks


def _alone(graph: Graph, nodes: list[fx.Node]) -> Iterator[bool]:
    """For each node, whether at most one differentiable value outlives it, itself included."""
    place = {node: i for i, node in enumerate(nodes)}
    differentiable = _differentiable(graph, nodes)
    last_use = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    live: set[fx.Node] = set()
    for i, node in enumerate(nodes):
        live = {value for value in live if last_use[value] > i}
        if node in differentiable and last_use[node] > i:
            live.add(node)
        yield live == {node}


def _differentiable(graph: Graph, nodes: list[fx.Node]) -> set[fx.Node]:
    """Values computed from a trained parameter and something else.

    A parameter and what is made of parameters alone, such as its cast, belong to their user.
    """
    trained: set[fx.Node] = set()
    reached: set[fx.Node] = set()
    for node in nodes:
        sources = set(node.all_input_nodes)
        if node.op == "get_attr":
            if _is_trained(graph.module, str(node.target)):
                trained.add(node)
        elif sources and sources <= trained:
            trained.add(node)
        elif sources & (trained | reached):
            reached.add(node)
    return reached


def _is_trained(module: nn.Module, path: str) -> bool:
    value = attribute(module, path)
    return isinstance(value, torch.Tensor) and value.requires_grad
