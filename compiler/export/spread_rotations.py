"""RotaryEmbedding(x, Cos(a), Sin(a))  ->  the same over Cos(a) and Sin(a) expanded to x's batch

where a is [1, sequence, size]: angles that follow from the positions alone, as ModernBERT's. The
rotary fusion leaves them so, and the operator takes none but x's batch.
"""

import onnx_ir as ir

from compiler.export.match import producer, size_of

ANGLES = {1: "Cos", 2: "Sin"}
"""What makes the operator's inputs of that place."""


def spread_rotations(model: ir.Model) -> None:
    for node in [node for node in model.graph if node.op_type == "RotaryEmbedding"]:
        for place, function in ANGLES.items():
            made = producer(node.inputs[place], function)
            if made is not None and size_of(made.inputs[0], 0) == 1:
                node.replace_input_with(place, _spread(model.graph, node, made.outputs[0]))


def _spread(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    batch = ir.node("Shape", [node.inputs[0]], {"start": 0, "end": 1})
    ones = ir.node("Constant", [], {"value_ints": [1, 1]})
    shape = ir.node("Concat", [batch.outputs[0], ones.outputs[0]], {"axis": 0})
    expand = ir.node("Expand", [value, shape.outputs[0]])
    graph.insert_before(node, [batch, ones, shape, expand])
    return expand.outputs[0]
