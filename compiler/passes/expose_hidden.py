"""output(linear(h, W))  ->  output(h)   so that the loss need never hold all logits"""

from dataclasses import dataclass

from torch import fx

from compiler.graph import ATEN, Graph, linears, rebuilt


@dataclass(frozen=True)
class Headless:
    """A graph that ends before its head; `weight` is the head's parameter path, or None."""

    graph: Graph
    weight: str | None


def expose_hidden(graph: Graph) -> Headless:
    """Cut a bias-free linear that is the graph's only output; other graphs are left whole."""
    output = next(node for node in graph.module.graph.nodes if node.op == "output")
    values = output.all_input_nodes
    last = next((line for line in linears(graph) if values == [line.node]), None)
    if last is None or last.bias is not None or last.node.target is not ATEN.linear.default:
        return Headless(graph, None)
    hidden = last.input
    output.args = fx.node.map_arg(output.args, lambda node: hidden if node is last.node else node)
    return Headless(rebuilt(graph), last.weight)
