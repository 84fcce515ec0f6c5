"""Three captured layers -> as many as the model has, by copying the middle one.

A capture's time grows with its identical layers. So a form with three is captured, layers 1 and 2
are compared node by node, and copies of layer 1 take the place of layer 2:

    prelude, layer 0, layer 1, layer 2, postlude
 -> prelude, layer 0, layer 1, copy 2, …, copy n - 1, postlude

Where layers differ the rewrite declines with the reason, and all of them are captured.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from torch import nn

from compiler.export.form import Form, Repeated

Values = dict[ir.Value, ir.Value]


class Declined(Exception):
    """Why the captured layers cannot stand for the others."""


@dataclass(frozen=True)
class Match:
    """Layer 1's nodes, their images in layer 2, and of each value layer 2's in its place."""

    template: list[ir.Node]
    images: list[ir.Node]
    image: Values = field(default_factory=dict)


def repeat_layers(model: ir.Model, form: Form, repeated: Repeated) -> None:
    """Rewrites a simplified capture of `repeated.short`; on Declined it is of no more use."""
    graph = model.graph
    match = _matched(graph, repeated)
    _check_inner_values_stay_inside(match)
    ports = {str(value.name): value for value in (*graph.inputs, *graph.outputs)}
    previous: Values = {value: value for node in match.template for value in node.outputs}
    for layer in range(2, repeated.count):
        previous = _copy(graph, match, previous, ports, repeated, layer)
    for value, last in previous.items():
        for use in list(match.image[value].uses()):
            if use.node not in match.images:
                use.node.replace_input_with(use.idx, last)
    _replace_ports(graph, ports, form)
    graph.remove(match.images, safe=True)
    common.TopologicalSortPass()(model)


def check_alike(layers: nn.Module) -> None:
    """Raises Declined when the layers after the first differ in more than their number."""
    facts = [_facts(layer) for layer in list(layers.children())[1:]]
    for place, found in enumerate(facts[1:], start=2):
        if found != facts[0]:
            different = {name for name, _ in found ^ facts[0]}
            raise Declined(f"layer {place} differs from layer 1 in {', '.join(sorted(different))}")


def _facts(layer: nn.Module) -> frozenset[tuple[str, object]]:
    """Shapes of the stored tensors and the plain settings of every part."""
    shapes = {(name, tuple(tensor.shape)) for name, tensor in layer.state_dict().items()}
    settings = {
        (f"{path}.{name}", value)
        for path, module in layer.named_modules()
        for name, value in {**vars(module), "type": type(module).__name__}.items()
        if isinstance(value, int | float | str) and not name.endswith("layer_idx")
    }
    return frozenset(shapes | settings)


def _matched(graph: ir.Graph, repeated: Repeated) -> Match:
    levels = _levels(graph, repeated)
    template = [node for node in graph if levels[node] == 1]
    images = [node for node in graph if levels[node] == 2][: len(template)]
    if not template or len(images) < len(template):
        raise Declined(f"layer 1 has {len(template)} nodes and layer 2 has {len(images)}")
    match = Match(template, images)
    for node, image in zip(template, images, strict=True):
        _match_node(match, node, image, repeated)
    return match


def _levels(graph: ir.Graph, repeated: Repeated) -> dict[ir.Node, int]:
    """Of every node, the highest layer whose parameters or cache it depends on, or -1."""
    values = {value: repeated.layer_of(str(value.name)) for value in graph.inputs}
    levels = {}
    for node in graph:
        levels[node] = max((values.get(value, -1) for value in node.inputs if value), default=-1)
        values |= dict.fromkeys(node.outputs, levels[node])
    return levels


def _match_node(match: Match, node: ir.Node, image: ir.Node, repeated: Repeated) -> None:
    sizes = [(n.op_identifier(), len(n.inputs), len(n.outputs)) for n in (node, image)]
    if sizes[0] != sizes[1] or _settings(node) != _settings(image):
        raise Declined(f"'{image.name}' of layer 2 is not what '{node.name}' of layer 1 is")
    for value, other in zip(node.inputs, image.inputs, strict=True):
        if value is None or other is None:
            if value is not other:
                raise Declined(f"'{image.name}' has other inputs than '{node.name}'")
            continue
        _match_input(match, value, other, repeated)
    match.image.update(zip(node.outputs, image.outputs, strict=True))


def _match_input(match: Match, value: ir.Value, other: ir.Value, repeated: Repeated) -> None:
    """The same value, the layer's own input, or what the layer before handed on."""
    if value in match.image:
        fits = match.image[value] is other
    elif value is other or _same_constant(value, other):
        other, fits = value, True
    elif value.is_graph_input():
        fits = repeated.layer_of(str(value.name)) == 1
        fits = fits and repeated.renamed(str(value.name), 2) == other.name
    else:
        fits = other.producer() in match.template
    if not fits:
        raise Declined(f"layer 2 reads '{other.name}' where layer 1 reads '{value.name}'")
    match.image[value] = other


def _same_constant(value: ir.Value, other: ir.Value) -> bool:
    one, two = value.const_value, other.const_value
    return one is not None and two is not None and np.array_equal(one.numpy(), two.numpy())


def _settings(node: ir.Node) -> dict[str, object]:
    if any(
        attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attr in node.attributes.values()
    ):
        raise Declined(f"'{node.name}' holds a graph of its own")
    return {name: attr.value for name, attr in node.attributes.items()}


def _check_inner_values_stay_inside(match: Match) -> None:
    inside = {*match.template, *match.images}
    for node in match.template:
        for value in node.outputs:
            strangers = [use.node for use in value.uses() if use.node not in inside]
            if strangers:
                raise Declined(f"'{strangers[0].name}' reads '{value.name}' inside layer 1")


def _copy(
    graph: ir.Graph,
    match: Match,
    previous: Values,
    ports: dict[str, ir.Value],
    repeated: Repeated,
    layer: int,
) -> Values:
    """Adds one layer behind the `previous` one; both map layer 1's values to a copy's."""
    values: Values = {}
    copies = []
    for node in match.template:
        for value in node.inputs:
            if value is not None and value not in values:
                values[value] = _moved(value, match, previous, ports, repeated, layer)
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else values[value] for value in node.inputs],
            node.attributes.values(),
            num_outputs=len(node.outputs),
            name=f"{node.name}.{layer}",
        )
        for value, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.shape, new.type = f"{value.name}.{layer}", value.shape, value.type
            if value.is_graph_output():
                new.name = repeated.renamed(str(value.name), layer)
                ports[new.name] = new
            values[value] = new
        copies.append(copy)
    graph.insert_after(match.images[-1], copies)
    return {value: values[value] for value in previous}


def _moved(
    value: ir.Value,
    match: Match,
    previous: Values,
    ports: dict[str, ir.Value],
    repeated: Repeated,
    layer: int,
) -> ir.Value:
    """What a copy reads where layer 1 reads `value`, which comes from outside layer 1."""
    image = match.image[value]
    if image in previous:
        return previous[image]
    if image is value:
        return value
    name = repeated.renamed(str(value.name), layer)
    if name not in ports:
        ports[name] = ir.Value(name=name, shape=value.shape, type=value.type)
    return ports[name]


def _replace_ports(graph: ir.Graph, ports: dict[str, ir.Value], form: Form) -> None:
    """Inputs and outputs in the order of the form, and the parameters in the model's."""
    named = [port.name for port in form.inputs]
    parameters = [name for name in ports if name not in {p.name for p in form.outputs}]
    order = [*named, *(name for name in parameters if name not in named)]
    graph.inputs.clear()
    graph.inputs.extend(ports[name] for name in order)
    graph.outputs.clear()
    graph.outputs.extend(ports[port.name] for port in form.outputs)
