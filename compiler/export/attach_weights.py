"""Skeleton + weights -> graph: parameters become initializers, each linear one fused op.

    Linear(x, weight[, bias])  ->  QuantLowRankMatMul(x, weight or codes, scales…, bias, bank, slot)

The type of a weight decides how it is stored: float32, bfloat16, or a QuantizedWeight's arrays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir
import torch
from onnx_ir.convenience import replace_nodes_and_values

from compiler.export.export_onnx import DOMAIN
from compiler.export.skeleton import SkeletonLinear, linears, parameters
from compiler.quantized import BLOCK_SIZE, QuantizedWeight, arrays
from planner.errors import IncompatibleError
from planner.method import Target

OP = "QuantLowRankMatMul"
Precision = Literal["exact", "fast"]
Weight = torch.Tensor | QuantizedWeight
Weights = Mapping[str, Weight]
"""By parameter name; of a tied weight any one name will do. "<linear>.bias" may be added to a
linear that the model gave none."""

SCALES = ("absmax", "codebook", "nested_absmax", "nested_codebook", "offset")
"""The op's inputs 2 to 6."""


@dataclass
class Attachment:
    """The graph under construction and the tensors that its initializers will hold, in order."""

    model: ir.Model
    weights: Weights
    stored: dict[str, tuple[ir.Value, torch.Tensor]] = field(default_factory=dict)

    def store(self, name: str, tensor: torch.Tensor) -> ir.Value:
        """The initializer of that name, made on first use: tied weights share it."""
        if name not in self.stored:
            value = ir.Value(name=name)
            self.stored[name] = (value, tensor)
        return self.stored[name][0]


def attach_weights(
    model: ir.Model, weights: Weights, sites: Sequence[Target], precision: Precision
) -> list[tuple[ir.Value, torch.Tensor]]:
    """Rewrites the model; returns the initializers with the tensors they are to hold."""
    attachment = Attachment(model, weights)
    found = linears(model)
    index = _site_index(found, sites)
    adapter = _bank_inputs(model) if sites else ()
    for linear in found:
        site = index.get(str(linear.node.name), -1)
        _fuse_linear(attachment, linear, site, adapter, precision)
    _attach_others(attachment)
    model.opset_imports[DOMAIN] = 1
    for value, _ in attachment.stored.values():
        model.graph.initializers[str(value.name)] = value
    return list(attachment.stored.values())


def weight_of(weights: Weights, names: Sequence[str]) -> Weight:
    """The weight under any of its names; raises IncompatibleError when none is given."""
    for name in names:
        if name in weights:
            return weights[name]
    raise IncompatibleError(f"no weight is given for the model's parameter '{names[0]}'")


def _site_index(found: Sequence[SkeletonLinear], sites: Sequence[Target]) -> dict[str, int]:
    """Each site's place in the bank's directory, by the name of its linear's node."""
    by_name = {str(linear.node.name): linear for linear in found}
    for linear in found:
        for name in linear.weight_names:
            by_name.setdefault(name.removesuffix(".weight"), linear)
    index = {}
    for place, site in enumerate(sites):
        match = by_name.get(site.name)
        if match is None:
            raise IncompatibleError(f"the inference graph has no linear '{site.name}'")
        if (match.out_features, match.in_features) != (site.out_features, site.in_features):
            raise IncompatibleError(
                f"'{site.name}' is [{match.out_features}, {match.in_features}] in the inference "
                f"graph, not [{site.out_features}, {site.in_features}]"
            )
        index[str(match.node.name)] = place
    return index


def _bank_inputs(model: ir.Model) -> tuple[ir.Value, ir.Value]:
    bank = ir.Value(
        name="bank", shape=ir.Shape(["bank_bytes"]), type=ir.TensorType(ir.DataType.UINT8)
    )
    slot = ir.Value(name="slot", shape=ir.Shape(["batch"]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.extend((bank, slot))
    return bank, slot


def _fuse_linear(
    attachment: Attachment,
    linear: SkeletonLinear,
    site: int,
    adapter: tuple[ir.Value, ...],
    precision: Precision,
) -> None:
    node = linear.node
    name, weight = _linear_weight(attachment.weights, linear)
    quantized = isinstance(weight, QuantizedWeight)
    inputs = [
        node.inputs[0],
        *_weight_inputs(attachment, linear, name, weight),
        _bias_input(attachment, node),
        *(adapter if site >= 0 else ()),
    ]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {
        "out_features": linear.out_features,
        "in_features": linear.in_features,
        "block_size": weight.block_size if isinstance(weight, QuantizedWeight) else BLOCK_SIZE,
        "precision": precision if quantized else "exact",
        "site": site,
    }
    fused = ir.node(OP, inputs, attributes, domain=DOMAIN, name=node.name)
    fused.outputs[0].name = node.outputs[0].name
    replace_nodes_and_values(
        attachment.model.graph, node, [node], [fused], node.outputs, fused.outputs
    )


def _linear_weight(weights: Weights, linear: SkeletonLinear) -> tuple[str, Weight]:
    """The weight and the name to store it under.

    A tied linear that was trained apart, or had an update folded in, has a weight of its own.
    """
    shared, own = linear.weight_names[0], f"{linear.node.name}.weight"
    if own in weights and shared in weights and not _same(weights[own], weights[shared]):
        return own, weights[own]
    return shared, weight_of(weights, linear.weight_names)


def _same(one: Weight, other: Weight) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.data_ptr() == other.data_ptr()
    return one is other


def _weight_inputs(
    attachment: Attachment, linear: SkeletonLinear, name: str, weight: Weight
) -> list[ir.Value | None]:
    """The op's inputs 1 to 6."""
    shape = tuple(weight.shape)
    if shape != (linear.out_features, linear.in_features):
        raise IncompatibleError(
            f"the weight given for '{name}' is {list(shape)}, not "
            f"[{linear.out_features}, {linear.in_features}]"
        )
    if isinstance(weight, torch.Tensor):
        return [attachment.store(name, weight), *[None] * len(SCALES)]
    present = {part: torch.from_numpy(array) for part, array in arrays(weight).items()}
    return [
        attachment.store(f"{name}.{part}", present[part]) if part in present else None
        for part in ("codes", *SCALES)
    ]


def _bias_input(attachment: Attachment, node: ir.Node) -> ir.Value | None:
    given = node.inputs[2] if len(node.inputs) > 2 else None
    name = f"{node.name}.bias" if given is None else str(given.name)
    names = parameters(attachment.model).get(name, (name,))
    if given is None and name not in attachment.weights:
        return None
    return attachment.store(name, _dense(name, weight_of(attachment.weights, names)).float())


def _attach_others(attachment: Attachment) -> None:
    """Parameters that other nodes read: embeddings in their own type, the rest in float32."""
    graph = attachment.model.graph
    for name, names in parameters(attachment.model).items():
        value = next(value for value in graph.inputs if value.name == name)
        graph.inputs.remove(value)
        if not value.uses():
            continue
        tensor = _dense(name, weight_of(attachment.weights, names))
        if not tensor.is_floating_point():
            _inline(graph, value, tensor)
            continue
        narrow = tensor.dtype == torch.bfloat16 and _only_gathered(value)
        # What a linear stored in bfloat16 is stored again for any other operator.
        taken = name in attachment.stored and attachment.stored[name][1].dtype == torch.bfloat16
        key = f"{name}.float32" if taken and not narrow else name
        initializer = attachment.store(key, tensor if narrow else tensor.float())
        gathers = [use.node for use in value.uses()]
        value.replace_all_uses_with(initializer)
        if narrow:
            for gather in gathers:
                _cast_output(graph, gather)


def _inline(graph: ir.Graph, value: ir.Value, tensor: torch.Tensor) -> None:
    """A count or an index table stays in the graph file, in its own type."""
    value.const_value = ir.tensor(tensor.numpy(), name=value.name)
    graph.register_initializer(value)


def _dense(name: str, weight: Weight) -> torch.Tensor:
    if isinstance(weight, QuantizedWeight):
        raise IncompatibleError(f"'{name}' is read by an operator that takes no 4-bit weight")
    return weight


def _only_gathered(value: ir.Value) -> bool:
    return all(use.node.op_type == "Gather" and use.idx == 0 for use in value.uses())


def _cast_output(graph: ir.Graph, gather: ir.Node) -> None:
    cast = ir.node("Cast", [gather.outputs[0]], {"to": ir.DataType.FLOAT.value})
    cast.name, cast.outputs[0].name = f"{gather.name}_float", f"{gather.outputs[0].name}_float"
    gather.outputs[0].replace_all_uses_with(cast.outputs[0])
    cast.replace_input_with(0, gather.outputs[0])
    graph.insert_after(gather, cast)
