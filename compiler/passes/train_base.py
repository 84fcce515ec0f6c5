"""parameter  ->  a trained fp32 copy of it, cast to the graph's dtype where it is used"""

import torch
from torch import nn

from compiler.graph import Graph, attribute, rebuilt

MASTERS = "masters"


def train_base(
    graph: Graph, head: torch.Tensor | None, head_path: str | None
) -> dict[str, nn.Parameter]:
    """Make every frozen parameter trainable, for full fine-tuning; returns the copies by path.

    `head` is the tensor at `head_path` that the loss reads and the graph need not.
    """
    holder = nn.Module()
    graph.module.add_submodule(MASTERS, holder)
    trained: dict[str, nn.Parameter] = {}
    for node in list(graph.module.graph.nodes):
        if node.op != "get_attr":
            continue
        value = attribute(graph.module, str(node.target))
        if not isinstance(value, nn.Parameter) or value.requires_grad:
            continue
        path, dtype = str(node.target), value.dtype
        name = path.replace(".", "/")
        if path not in trained:
            trained[path] = nn.Parameter(value.detach().to(torch.float32, copy=True))
            holder.register_parameter(name, trained[path])
        node.target = f"{MASTERS}.{name}"
        if dtype != torch.float32 and node.users:
            # Where it is used first and no earlier: then a recomputed block casts its own.
            with graph.module.graph.inserting_before(min(node.users)):
                cast = graph.module.graph.call_method("to", (node, dtype))
            node.replace_all_uses_with(
                cast, delete_user_cb=lambda user, cast=cast: user is not cast
            )
    if head is not None and head_path is not None and head_path not in trained:
        trained[head_path] = nn.Parameter(head.detach().to(torch.float32, copy=True))
        holder.register_parameter(head_path.replace(".", "/"), trained[head_path])
    rebuilt(graph)
    return trained
