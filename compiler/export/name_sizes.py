"""Shape(past.7.key, axis 2) -> Shape(past.0.key, axis 2): one source for each named size.

The exporter asks any input that has the size; asking the first leaves the layers alike.
"""

import onnx_ir as ir


def name_sizes(model: ir.Model) -> None:
    graph = model.graph
    sources: dict[str, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value:
                sources.setdefault(str(size.value), (value, axis))
    for node in [node for node in graph if node.op_type == "Shape" and not node.domain]:
        asked, start = node.inputs[0], node.attributes.get_int("start", 0)
        if asked is None or not asked.is_graph_input() or asked.shape is None:
            continue
        if node.attributes.get_int("end", len(asked.shape)) != start + 1:
            continue
        size = asked.shape[start]
        if isinstance(size, ir.SymbolicDim) and size.value in sources:
            source, axis = sources[str(size.value)]
            node.replace_input_with(0, source)
            node.attributes["start"] = ir.AttrInt64("start", axis)
            node.attributes["end"] = ir.AttrInt64("end", axis + 1)
