"""What each linear does, read off the dataflow, never off its name.

query, key, value    feed operand 0, 1, 2 of an attention (several at once: a fused projection)
output               takes the attention's result
gate, up             meet in a product, the gate through an activation; without a gate, the linear
                     before the activation is up; gate_up is cut in two that meet so
down                 takes that product or activation, and no activation takes it
head, classifier     reaches the graph's output through no other linear: the head when its weight
                     is tied to an embedding or is as tall as one, else the classifier
linear               anything else

An activation may be written out in elementwise operations, as transformers does GELU's tanh form.
"""

from collections.abc import Callable, Iterable
from operator import getitem

from torch import fx

from compiler.graph import ATEN, Graph, Linear, attribute, linears
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
CUT = ATEN.chunk.default
SUM = ATEN.add.Tensor
ELEMENTWISE = ACTIVATIONS | {PRODUCT, SUM, ATEN.pow.Tensor_Scalar}
OPERANDS = ("attention.query", "attention.key", "attention.value")

Nodes = set[fx.Node]


def targets(graph: Graph) -> tuple[Target, ...]:
    """Every linear of the graph with its role; one target per weight, in execution order.

    A weight that is used twice has the first role that says more than "linear".
    """
    found = linears(graph)
    nodes = {linear.node for linear in found}
    named: dict[str, Target] = {}
    for linear in found:
        role = _role(graph, nodes, linear)
        known = named.get(linear.name)
        if known is None or known.role == "linear":
            named[linear.name] = Target(linear.name, role, linear.out_features, linear.in_features)
    return tuple(named.values())


def _role(graph: Graph, nodes: Nodes, linear: Linear) -> str:
    return (
        _attention_role(nodes, linear)
        or _mlp_role(nodes, linear)
        or _output_role(graph, nodes, linear)
    )


def _walk(
    start: Iterable[fx.Node], onward: Callable[[fx.Node], Iterable[fx.Node]], nodes: Nodes
) -> Nodes:
    """Nodes reached from `start`; linears and attentions are reached and not passed."""
    seen: Nodes = set()
    stack = list(start)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            if node not in nodes and node.target is not ATTENTION:
                stack.extend(onward(node))
    return seen


def _downstream(node: fx.Node, nodes: Nodes) -> Nodes:
    return _walk(node.users, lambda n: n.users, nodes)


def _upstream(node: fx.Node, nodes: Nodes) -> Nodes:
    return _walk([node], lambda n: n.all_input_nodes, nodes)


def _attention_role(nodes: Nodes, linear: Linear) -> str | None:
    reached = _downstream(linear.node, nodes)
    attentions = [node for node in reached if node.target is ATTENTION]
    if attentions and not _joins_residual(linear.node, reached):
        operands = {
            position
            for attention in attentions
            for position, operand in enumerate(attention.args[:3])
            if isinstance(operand, fx.Node) and linear.node in _upstream(operand, nodes)
        }
        return OPERANDS[min(operands)] if len(operands) == 1 else "attention.qkv"
    return "attention.output" if _is_attention_result(linear.input) else None


def _joins_residual(start: fx.Node, reached: Nodes) -> bool:
    """Whether the way onward crosses a sum with a value that `start` had no part in."""
    return any(
        isinstance(term, fx.Node)
        and term.op == "call_function"
        and term is not start
        and term not in reached
        for node in reached
        if node.target is SUM
        for term in node.args[:2]
    )


def _is_attention_result(node: fx.Node) -> bool:
    """Whether the value is an attention's result, moved and reshaped at most."""
    while node.target is not ATTENTION:
        tensors = [n for n in node.all_input_nodes if hasattr(n.meta.get("val"), "shape")]
        if node.op != "call_function" or len(tensors) != 1:
            return False
        node = tensors[0]
    return True


def _mlp_role(nodes: Nodes, linear: Linear) -> str | None:
    if any(_is_gated(nodes, user) for user in linear.node.users):
        return "mlp.up"
    activations = [node for node in _made_of(linear.node) if _is_activated(nodes, node)]
    if any(_is_gated(nodes, user) for activation in activations for user in activation.users):
        return "mlp.gate"
    pieces = [piece for user in linear.node.users if user.target is CUT for piece in user.users]
    if any(_is_gated(nodes, user) for piece in pieces for user in piece.users):
        return "mlp.gate_up"
    if activations and _downstream(linear.node, nodes) & nodes:
        return "mlp.up"
    fed = _is_gated(nodes, linear.input) or _is_activated(nodes, linear.input)
    return "mlp.down" if fed else None


def _is_gated(nodes: Nodes, node: fx.Node) -> bool:
    """Whether a node multiplies an activated linear with another linear's output, or its own."""
    if node.target is not PRODUCT:
        return False
    factors = [factor for factor in node.args[:2] if isinstance(factor, fx.Node)]
    activated = any(_is_activated(nodes, factor) for factor in factors)
    return activated and any(_whole(factor) in nodes for factor in factors)


def _is_activated(nodes: Nodes, node: fx.Node) -> bool:
    """Whether elementwise operations, an activation among them, made it of one linear's output."""
    made = _walk([node], lambda n: n.all_input_nodes if n.target in ELEMENTWISE else (), nodes)
    sources = [_whole(n) for n in made if n in nodes or n.target not in ELEMENTWISE]
    activated = any(n.target in ACTIVATIONS for n in made)
    return activated and len(sources) == 1 and sources[0] in nodes


def _made_of(value: fx.Node) -> Nodes:
    """What elementwise operations make of a value and of nothing else."""
    made = {value}
    stack = list(value.users)
    while stack:
        node = stack.pop()
        if node.target in ELEMENTWISE and node not in made and made >= set(node.all_input_nodes):
            made.add(node)
            stack.extend(node.users)
    return made - {value}


def _whole(node: fx.Node) -> fx.Node:
    """What the value is a piece of; itself where it is none."""
    cut = node.all_input_nodes[0] if node.target is getitem else node
    return cut.all_input_nodes[0] if cut.target is CUT else node


def _output_role(graph: Graph, nodes: Nodes, linear: Linear) -> str:
    reached = _downstream(linear.node, nodes)
    if reached & nodes or not any(node.op == "output" for node in reached):
        return "linear"
    for node in graph.module.graph.nodes:
        if node.target is ATEN.embedding.default:
            table = node.args[0]
            if table is linear.node.args[1]:
                return "head"
            if attribute(graph.module, str(table.target)).shape[0] == linear.out_features:
                return "head"
    return "classifier"
