"""Transpose(GatherND(Transpose(x), Unsqueeze(index, -1))) -> Gather(x, index, axis 1).

The exporter's form of x[:, index], which moves all of x to read a row of it.
"""

import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.passes import common

from compiler.export.match import permutation, producer, rank


def gather_positions(model: ir.Model) -> None:
    graph = model.graph
    for node in [node for node in graph if node.op_type == "GatherND"]:
        moved, index = (
            producer(node.inputs[0], "Transpose"),
            producer(node.inputs[1], "Unsqueeze"),
        )
        back = [use.node for use in node.outputs[0].uses()]
        if not (moved and index and len(back) == 1 and back[0].op_type == "Transpose"):
            continue
        if {permutation(moved), permutation(back[0])} != {(1, 0, 2)} or rank(index.inputs[0]) != 1:
            continue
        gather = ir.node("Gather", [moved.inputs[0], index.inputs[0]], {"axis": 1}, name=node.name)
        replace_nodes_and_values(
            graph, node, [back[0], node], [gather], back[0].outputs, gather.outputs
        )
    common.RemoveUnusedNodesPass()(model)
