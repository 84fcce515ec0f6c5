"""What each linear does, read off the dataflow, never off its name.

query, key, value    feed operand 0, 1, 2 of an attention (several at once: a fused projection)
output               takes the attention's result
gate, up             meet in a product, the gate through an activation; without a gate, the linear
                     before the activation is up
down                 takes that product or activation
head, classifier     reaches the graph's output through no other linear: the head when its weight
                     is tied to an embedding or is as tall as one, else the classifier
linear               anything else
"""

from collections.abc import Callable, Iterable

import networkx as nx
from torch import fx

from compiler.graph import ATEN, Graph, Linear, attribute, dataflow, linears
from planner.method import Target

ATTENTION = ATEN.scaled_dot_product_attention.default
ACTIVATIONS = {
    ATEN.silu.default,
    ATEN.gelu.default,
    ATEN.relu.default,
    ATEN.sigmoid.default,
    ATEN.tanh.default,
    ATEN.hardswish.default,
    ATEN.leaky_relu.default,
    ATEN.elu.default,
}
PRODUCT = ATEN.mul.Tensor
OPERANDS = ("attention.query", "attention.key", "attention.value")

Flow = "nx.DiGraph[fx.Node]"


def targets(graph: Graph) -> tuple[Target, ...]:
    """Every linear of the graph with its role; one target per weight, in execution order."""
    found = linears(graph)
    flow = dataflow(graph)
    nodes = {linear.node for linear in found}
    named: dict[str, Target] = {}
    for linear in found:
        role = _role(graph, flow, nodes, linear)
        named.setdefault(
            linear.name, Target(linear.name, role, linear.out_features, linear.in_features)
        )
    return tuple(named.values())


def _walk(
    start: Iterable[fx.Node],
    step: Callable[[fx.Node], Iterable[fx.Node]],
    stop: Callable[[fx.Node], bool],
) -> set[fx.Node]:
    """Nodes reached from `start`; a node where `stop` holds is included and not passed."""
    seen: set[fx.Node] = set()
    stack = list(start)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            if not stop(node):
                stack.extend(step(node))
    return seen


def _role(graph: Graph, flow: Flow, nodes: set[fx.Node], linear: Linear) -> str:
    def boundary(node: fx.Node) -> bool:
        return node in nodes or node.target is ATTENTION

    reached = _walk(flow.successors(linear.node), flow.successors, boundary)
    fed = {node for node in reached if node.target is ATTENTION}
    if fed and not _passes_residual(flow, linear.node, reached, boundary):
        operands = _operands(flow, linear.node, fed, boundary)
        return OPERANDS[operands[0]] if len(operands) == 1 else "attention.qkv"
    sources = _walk([linear.input], flow.predecessors, boundary)
    if any(node.target is ATTENTION for node in sources) and _direct(flow, linear, ATTENTION):
        return "attention.output"
    return _mlp_role(flow, nodes, linear, boundary) or _output_role(graph, reached, nodes, linear)


def _passes_residual(
    flow: Flow, start: fx.Node, reached: set[fx.Node], boundary: Callable[[fx.Node], bool]
) -> bool:
    """Whether the way to the attention crosses a sum with an older value of the same width."""
    return any(
        node.target is ATEN.add.Tensor
        and all(isinstance(argument, fx.Node) for argument in node.args[:2])
        and any(
            argument not in reached and argument is not start and _computed(argument)
            for argument in node.args[:2]
        )
        for node in reached
        if not boundary(node)
    )


def _computed(node: fx.Node) -> bool:
    return node.op == "call_function"


def _operands(
    flow: Flow, start: fx.Node, fed: set[fx.Node], boundary: Callable[[fx.Node], bool]
) -> list[int]:
    """Positions of the attention's operands that `start` reaches without passing a linear."""
    positions = set()
    for attention in fed:
        for position, operand in enumerate(attention.args[:3]):
            sources = _walk([operand], flow.predecessors, boundary)
            if start in sources:
                positions.add(position)
    return sorted(positions)


def _direct(flow: Flow, linear: Linear, wanted: object) -> bool:
    """Whether the input comes from `wanted` through reshapes alone."""
    node = linear.input
    while node.op == "call_function":
        if node.target is wanted:
            return True
        inputs = [n for n in node.all_input_nodes if "val" in n.meta and hasattr(n.meta["val"], "shape")]
        if len(inputs) != 1:
            return False
        node = inputs[0]
    return False


def _mlp_role(
    flow: Flow, nodes: set[fx.Node], linear: Linear, boundary: Callable[[fx.Node], bool]
) -> str | None:
    if _from_activation(flow, nodes, linear.input):
        return "mlp.down"
    node = linear.node
    activated = False
    while True:
        users = list(flow.successors(node))
        activated = activated or any(user.target in ACTIVATIONS for user in users)
        products = [user for user in users if user.target is PRODUCT]
        if any(_gated(flow, nodes, product) for product in products):
            return "mlp.gate" if activated else "mlp.up"
        onward = [user for user in users if user.target in ACTIVATIONS]
        if not onward:
            break
        node = onward[0]
    followed = _walk(flow.successors(linear.node), flow.successors, boundary)
    return "mlp.up" if activated and any(n in nodes for n in followed) else None


def _gated(flow: Flow, nodes: set[fx.Node], product: fx.Node) -> bool:
    """Whether a product multiplies an activated linear with another linear's output."""
    factors = [a for a in product.args[:2] if isinstance(a, fx.Node)]
    return (
        len(factors) == 2
        and any(_activated_linear(nodes, factor) for factor in factors)
        and any(factor in nodes for factor in factors)
    )


def _activated_linear(nodes: set[fx.Node], node: fx.Node) -> bool:
    """silu(linear), or the linear times its own sigmoid."""
    if node.target in ACTIVATIONS:
        return node.args[0] in nodes
    return False


def _from_activation(flow: Flow, nodes: set[fx.Node], node: fx.Node) -> bool:
    if node.target is PRODUCT and _gated(flow, nodes, node):
        return True
    return _activated_linear(nodes, node)


def _output_role(graph: Graph, reached: set[fx.Node], nodes: set[fx.Node], linear: Linear) -> str:
    if not any(node.op == "output" for node in reached) or reached & nodes:
        return "linear"
    for node in graph.module.graph.nodes:
        if node.target is ATEN.embedding.default:
            table = node.args[0]
            tied = table is linear.node.args[1]
            if tied or attribute(graph.module, str(table.target)).shape[0] == linear.out_features:
                return "head"
    return "classifier"
