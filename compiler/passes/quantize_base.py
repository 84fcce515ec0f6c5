"""linear(x, W), low_rank_linear(x, ..., W)  ->  the same over W's 4-bit blocks"""

from collections.abc import Mapping

import torch
from torch import fx, nn

from compiler.frozen_linear import dense_weight, frozen_linear, low_rank_linear
from compiler.graph import ATEN, Graph, rebuilt
from compiler.quantized import QuantizedWeight, arrays

QUANTIZED = "quantized"
PARTS = ("codes", "absmax", "codebook", "nested_absmax", "nested_codebook", "offset")


def quantize_base(
    graph: Graph, weights: Mapping[str, QuantizedWeight], dtype: torch.dtype
) -> Graph:
    """Replace the weights, named by parameter path, by their quantized forms.

    Users that read the weight itself get it dequantised to `dtype` each step.
    """
    holder = nn.Module()
    graph.module.add_submodule(QUANTIZED, holder)
    for node in list(graph.module.graph.nodes):
        if node.op == "get_attr" and node.target in weights:
            _replace(graph, holder, node, weights[node.target], dtype)
    return rebuilt(graph)


def _replace(
    graph: Graph, holder: nn.Module, node: fx.Node, weight: QuantizedWeight, dtype: torch.dtype
) -> None:
    values = arrays(weight)
    packed = []
    with graph.module.graph.inserting_after(node):
        for part in PARTS:
            name = f"{node.target}.{part}".replace(".", "/")
            holder.register_buffer(name, torch.from_numpy(values[part]), persistent=False)
            packed.append(graph.module.graph.get_attr(f"{QUANTIZED}.{name}"))
    shape = weight.shape
    for user in list(node.users):
        if user.target is ATEN.linear.default and user.args[1] is node:
            bias = user.args[2] if len(user.args) > 2 else None
            user.target, user.args = frozen_linear, (user.args[0], bias, shape, *packed)
        elif user.target is low_rank_linear:
            user.args = (*user.args[:5], *packed)
        else:
            with graph.module.graph.inserting_before(user):
                dense = graph.module.graph.call_function(dense_weight, (shape, dtype, *packed))
            user.replace_input_with(node, dense)
