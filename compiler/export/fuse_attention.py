"""Attention over repeated, concatenated, transposed heads -> one Attention node.

    Attention(q, repeat(Concat(past, k)), repeat(Concat(past, v)), mask)
 -> Attention(q, k, v, mask, past, past) with fewer key-value heads and the presents as outputs
    q, k, v as Transpose(Reshape(x, [batch, sequence, heads, size])) -> x, and back behind the node

A rule that finds another shape of graph leaves it alone: the graph stays right, only slower.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.passes import common

from compiler.export.match import constant, permutation, producer, rank, size_of

HEADS_FIRST = (0, 2, 1, 3)
Q, K, V, MASK, PAST_K = range(5)


def fuse_attention(model: ir.Model) -> None:
    for rule in (share_key_value_heads, take_cache_in, flatten_heads):
        for node in [node for node in model.graph if node.op_type == "Attention"]:
            rule(model.graph, node)
        common.RemoveUnusedNodesPass()(model)


def share_key_value_heads(graph: ir.Graph, attention: ir.Node) -> None:
    """Grouped heads are the operator's own: Reshape(Expand(Unsqueeze(k, 2))) -> k."""
    del graph
    query = size_of(attention.inputs[Q], 1)
    key, value = (_unrepeated(attention.inputs[place]) for place in (K, V))
    heads, value_heads = size_of(key, 1), size_of(value, 1)
    if query and heads and heads == value_heads and query % heads == 0:
        attention.replace_input_with(K, key)
        attention.replace_input_with(V, value)


def take_cache_in(graph: ir.Graph, attention: ir.Node) -> None:
    """Concat(past, new) becomes the operator's own; its outputs 1 and 2 are the presents."""
    joins = [producer(attention.inputs[place], "Concat") for place in (K, V)]
    appends = [join for join in joins if join and _appends_to_input(graph, join, attention)]
    if len(appends) != 2 or len(attention.inputs) > PAST_K:
        return
    key, value = appends
    mask = attention.inputs[MASK] if len(attention.inputs) > MASK else None
    new, past = (key.inputs[1], value.inputs[1]), (key.inputs[0], value.inputs[0])
    fused = ir.Node(
        "",
        "Attention",
        [attention.inputs[Q], *new, mask, *past],
        attention.attributes.values(),
        num_outputs=3,
        name=attention.name,
    )
    old = (attention.outputs[0], key.outputs[0], value.outputs[0])
    replace_nodes_and_values(graph, attention, (attention, key, value), [fused], old, fused.outputs)


def flatten_heads(graph: ir.Graph, attention: ir.Node) -> None:
    """Queries, keys and values come as [batch, sequence, heads * size] and leave so."""
    operands = attention.inputs[Q:MASK]
    last = _merged_output(attention.outputs[0])
    if last is None or not all(_is_heads_first(operand) for operand in operands):
        return
    flat = [_flattened(graph, attention, operand) for operand in operands]
    heads = {"q_num_heads": size_of(operands[Q], 1), "kv_num_heads": size_of(operands[K], 1)}
    fused = ir.Node(
        "",
        "Attention",
        [*flat, *attention.inputs[MASK:]],
        [*attention.attributes.values(), *ir.convenience.convert_attributes(heads)],
        num_outputs=len(attention.outputs),
        name=attention.name,
    )
    nodes = [*_chain(attention.outputs[0], last), attention]
    old = (last, *attention.outputs[1:])
    replace_nodes_and_values(graph, attention, nodes, [fused], old, fused.outputs)


def _unrepeated(value: ir.Value | None) -> ir.Value | None:
    reshape = producer(value, "Reshape")
    expand = producer(reshape.inputs[0], "Expand") if reshape else None
    unsqueeze = producer(expand.inputs[0], "Unsqueeze") if expand else None
    if unsqueeze is None or constant(unsqueeze.inputs[1]) != [2] or rank(value) != 4:
        return None
    return unsqueeze.inputs[0]


def _appends_to_input(graph: ir.Graph, join: ir.Node, attention: ir.Node) -> bool:
    """The join appends to a graph input along the positions, for this attention alone."""
    axis = join.attributes.get_int("axis", 0)
    only = all(use.node is attention for use in join.outputs[0].uses())
    return len(join.inputs) == 2 and axis in (-2, 2) and only and join.inputs[0] in graph.inputs


def _is_heads_first(value: ir.Value | None) -> bool:
    """[batch, heads, sequence, size], transposed from heads last, perhaps then rotated."""
    rotary = producer(value, "RotaryEmbedding")
    transpose = producer(rotary.inputs[0] if rotary else value, "Transpose")
    known = size_of(value, 1) is not None and size_of(value, 3) is not None
    return transpose is not None and permutation(transpose) == HEADS_FIRST and known


def _flattened(graph: ir.Graph, before: ir.Node, value: ir.Value | None) -> ir.Value:
    """The same numbers as [batch, sequence, heads * size]."""
    rotary = producer(value, "RotaryEmbedding")
    transpose = producer(rotary.inputs[0] if rotary else value, "Transpose")
    heads, size = size_of(value, 1), size_of(value, 3)
    if transpose is None or heads is None or size is None or transpose.inputs[0] is None:
        raise ValueError(f"'{value}' is not heads first")
    flat = _merged_heads(graph, before, transpose.inputs[0], heads * size)
    if rotary is None:
        return flat
    attributes = {name: attr for name, attr in rotary.attributes.items() if name != "num_heads"}
    turned = ir.Node(
        "",
        "RotaryEmbedding",
        [flat, *rotary.inputs[1:]],
        [*attributes.values(), ir.AttrInt64("num_heads", heads)],
        name=rotary.name,
    )
    turned.outputs[0].name = f"{rotary.outputs[0].name}_flat"
    graph.insert_before(before, turned)
    return turned.outputs[0]


def _merged_heads(graph: ir.Graph, before: ir.Node, value: ir.Value, width: int) -> ir.Value:
    """[batch, sequence, heads, size] -> [batch, sequence, width]."""
    split = producer(value, "Reshape")
    source = split.inputs[0] if split else None
    if source is not None and rank(source) == 3 and size_of(source, 2) == width:
        return source
    shape = ir.Value(
        name=f"{value.name}_merged_shape",
        const_value=ir.tensor(np.array([0, 0, width], np.int64), name=f"{value.name}_merged_shape"),
    )
    graph.register_initializer(shape)
    reshape = ir.node("Reshape", [value, shape], name=f"{value.name}_merged")
    reshape.outputs[0].name = f"{value.name}_merged"
    graph.insert_before(before, reshape)
    return reshape.outputs[0]


def _merged_output(value: ir.Value) -> ir.Value | None:
    """The [batch, sequence, heads * size] that the output becomes, if that is all it becomes."""
    heads, size, transposed = size_of(value, 1), size_of(value, 3), False
    while heads and size and len(uses := list(value.uses())) == 1 and not value.is_graph_output():
        node = uses[0].node
        if node.op_type not in ("Reshape", "Transpose") or uses[0].idx != 0:
            break
        if node.op_type == "Transpose" and (transposed or permutation(node) != HEADS_FIRST):
            return None
        transposed = transposed or node.op_type == "Transpose"
        value = node.outputs[0]
        if transposed and rank(value) == 3:
            return value if size_of(value, 2) == heads * size else None
    return None


def _chain(first: ir.Value, last: ir.Value) -> list[ir.Node]:
    """The single users between two values, the last first."""
    nodes: list[ir.Node] = []
    while first is not last:
        (use,) = first.uses()
        nodes.insert(0, use.node)
        first = use.node.outputs[0]
    return nodes
