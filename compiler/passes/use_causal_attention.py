"""attention(q, k, v, mask)  ->  attention(q, k, v, is_causal)   where mask is the causal triangle

A mask that follows from the shapes alone is evaluated, at two small shapes and at the longest
sequence that will be trained, which a sliding window would show in; only a lower triangle over
every row is replaced. That frees the mask and opens the attention kernels that need none.
"""

import torch
from torch import fx

from compiler.graph import ATEN, Graph, rebuilt

ATTENTION = ATEN.scaled_dot_product_attention.default
PROBE_SHAPES = ((2, 7), (3, 5))


def use_causal_attention(graph: Graph, longest: int) -> Graph:
    """Replace causal masks of attention nodes; other masks are left as they are."""
    verdicts: dict[fx.Node, bool] = {}
    for node in graph.module.graph.nodes:
        mask = node.args[3] if node.target is ATTENTION and len(node.args) > 3 else None
        if not isinstance(mask, fx.Node):
            continue
        if mask not in verdicts:
            verdicts[mask] = _is_causal(graph, mask, longest)
        if verdicts[mask]:
            node.args = (*node.args[:3], None, 0.0, True)
    return rebuilt(graph)


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            stack.extend(current.all_input_nodes)
    return seen


def _is_causal(graph: Graph, mask: fx.Node, longest: int) -> bool:
    needed = _ancestors(mask)
    for source in needed:
        if source.op == "placeholder" and any(
            user in needed and user.target is not ATEN.sym_size.int for user in source.users
        ):
            return False
    shapes = (*PROBE_SHAPES, (1, longest))
    return all(_is_triangle(_evaluate(graph, mask, needed, shape)) for shape in shapes)


def _evaluate(
    graph: Graph, mask: fx.Node, needed: set[fx.Node], shape: tuple[int, int]
) -> torch.Tensor:
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.module.graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[mask])
    module = fx.GraphModule(graph.module, part)
    inputs = [torch.zeros(shape, dtype=torch.int64) for _ in graph.inputs]
    value: torch.Tensor = module(*inputs)
    return value


def _is_triangle(mask: torch.Tensor) -> bool:
    length = mask.shape[-1]
    if mask.shape[-2] != length:
        return False
    triangle = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = mask if mask.dtype == torch.bool else mask == 0
    return bool((allowed == triangle).all())
