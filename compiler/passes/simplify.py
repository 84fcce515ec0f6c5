"""assert(x); slice(x, 0, end); to(x, its own dtype)  ->  x"""

import sys
from collections.abc import Callable

import torch
from torch import fx

from compiler.graph import ATEN, Graph, rebuilt

ASSERTIONS = {
    ATEN._assert_tensor_metadata.default,
    ATEN._assert_scalar.default,
    ATEN.sym_constrain_range_for_size.default,
}
UNBOUNDED = sys.maxsize


def _whole_slice(node: fx.Node) -> bool:
    _, _, start, end, *step = (*node.args, *(None,) * (4 - len(node.args)))[:5]
    return start in (None, 0) and end in (None, UNBOUNDED) and step in ([], [1], [None])


def _same_dtype(node: fx.Node) -> bool:
    source = node.args[0]
    if not isinstance(source, fx.Node) or "val" not in source.meta or "val" not in node.meta:
        return False
    before, after = source.meta["val"], node.meta["val"]
    return (
        isinstance(before, torch.Tensor)
        and before.dtype == after.dtype
        and before.device == after.device
    )


def _always(_: fx.Node) -> bool:
    return True


def _inactive_dropout(node: fx.Node) -> bool:
    return not node.args[2]


IDENTITIES: dict[object, Callable[[fx.Node], bool]] = {
    ATEN.slice.Tensor: _whole_slice,
    ATEN.to.dtype: _same_dtype,
    ATEN.to.dtype_layout: _same_dtype,
    ATEN.to.device: _same_dtype,
    ATEN.lift_fresh_copy.default: _always,
    ATEN.detach_.default: _always,
    ATEN.dropout.default: _inactive_dropout,
}


def simplify(graph: Graph) -> Graph:
    """Remove assertions and operations that return their input unchanged."""
    for node in list(graph.module.graph.nodes):
        if node.target in ASSERTIONS or node.target == "_guards_fn":
            graph.module.graph.erase_node(node)
        elif node.target in IDENTITIES and IDENTITIES[node.target](node):
            node.replace_all_uses_with(node.args[0])
            graph.module.graph.erase_node(node)
    return rebuilt(graph)
