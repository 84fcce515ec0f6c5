"""Form -> ONNX skeleton: the inference graph whose parameters are inputs, with no weights inside.

Every `aten.linear` on a parameter stays one node `ai.paretune::Linear(x, weight[, bias])` named
after its module; unmerged.py and merged.py put weights in. Parameters are inputs, not initializers
without data, so that a skeleton is a valid model and no optimisation can look at a weight's value.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.convenience import replace_nodes_and_values

from compiler.export.export_onnx import LINEAR, export_onnx
from compiler.export.form import Form, Port, parameter_names
from compiler.export.repeat_layers import Declined, check_alike, repeat_layers
from compiler.export.simplify_graph import simplify_graph
from planner.errors import ParetuneError

logger = logging.getLogger(__name__)

ALIASES = "paretune.parameters"
"""Metadata key: JSON of every parameter's names, by the name it has in the graph."""


@dataclass(frozen=True)
class Skeleton:
    """A skeleton file; `model` reads a fresh graph, free to be rewritten."""

    path: Path

    def model(self) -> ir.Model:
        return ir.load(self.path)


@dataclass(frozen=True)
class SkeletonLinear:
    """A linear of the skeleton; every name its weight has in the module, the graph's first."""

    node: ir.Node
    weight_names: tuple[str, ...]
    out_features: int
    in_features: int


def cached(
    form: Callable[[], Form], key: Mapping[str, object], folder: Path | None = None
) -> Skeleton:
    """The skeleton of that key, captured only when the folder has none.

    `key` is JSON and decides everything about the form but its weights; the versions of the
    exporter's parts and of our own sources are added to it.
    """
    folder = default_folder() if folder is None else folder
    path = folder / f"{_digest(key)}.onnx"
    if not path.is_file():
        write(form(), path)
    return Skeleton(path)


def default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "paretune" / "skeletons"


def write(form: Form, path: Path) -> Skeleton:
    """Captures a form into a file, written aside and renamed."""
    data = ir.serde.serialize_model(build(form)).SerializeToString(deterministic=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(aside).replace(path)
    finally:
        Path(aside).unlink(missing_ok=True)
    return Skeleton(path)


def build(form: Form) -> ir.Model:
    """Captures a form; raises ParetuneError when the module cannot be exported."""
    model = _repeated(form) or _simplified(form)
    names = parameter_names(form.module)
    _name_linears(model.graph, form, names)
    model.metadata_props[ALIASES] = json.dumps(names, sort_keys=True)
    return _stripped(model)


def _repeated(form: Form) -> ir.Model | None:
    """The capture of the short form, its layers repeated; None when they are not alike."""
    if form.repeated is None:
        return None
    try:
        check_alike(form.module.get_submodule(form.repeated.path))
        model = _simplified(form.repeated.short)
        repeat_layers(model, form, form.repeated)
    except Declined as reason:
        logger.info("every layer of %s is captured: %s", type(form.module).__name__, reason)
        return None
    return model


def _simplified(form: Form) -> ir.Model:
    model = export_onnx(form)
    names = parameter_names(form.module)
    _parameters_to_inputs(model, names)
    _name_ports(model.graph, form)
    simplify_graph(model)
    _lower_computed_linears(model.graph, names)
    return model


def linears(model: ir.Model) -> tuple[SkeletonLinear, ...]:
    """Every linear in execution order."""
    names: dict[str, list[str]] = json.loads(model.metadata_props[ALIASES])
    return tuple(_skeleton_linear(node, names) for node in model.graph if node.op_type == LINEAR)


def parameters(model: ir.Model) -> dict[str, tuple[str, ...]]:
    """The parameters the graph uses: all names of each, by its name in the graph."""
    names: dict[str, list[str]] = json.loads(model.metadata_props[ALIASES])
    inputs = {value.name for value in model.graph.inputs}
    return {name: tuple(aliases) for name, aliases in names.items() if name in inputs}


def _skeleton_linear(node: ir.Node, names: Mapping[str, list[str]]) -> SkeletonLinear:
    weight = node.inputs[1]
    if weight is None or weight.shape is None or weight.name is None:
        raise ValueError(f"linear '{node.name}' has no weight of known shape")
    out_features, in_features = (int(size) for size in weight.shape)  # type: ignore[arg-type]
    return SkeletonLinear(node, tuple(names[weight.name]), out_features, in_features)


def _digest(key: Mapping[str, object]) -> str:
    packages = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")
    folder = Path(__file__).parent
    sources = [*sorted(folder.glob("*.py")), folder.parent / "huggingface.py"]
    parts = {
        "key": key,
        "versions": {name: version(name) for name in packages},
        "sources": [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _parameters_to_inputs(model: ir.Model, names: Mapping[str, tuple[str, ...]]) -> None:
    """Turn stored tensors into graph inputs; what remains is constant, whatever the checkpoint."""
    graph = model.graph
    canonical = {alias: name for name, aliases in names.items() for alias in aliases}
    for name in [name for name in graph.initializers if name in canonical]:
        value = graph.initializers.pop(name)
        value.const_value = None
        first = next((i for i in graph.inputs if i.name == canonical[name]), None)
        if first is None:
            value.name = canonical[name]
            graph.inputs.append(value)
        else:
            value.replace_all_uses_with(first)


def _lower_computed_linears(graph: ir.Graph, names: Mapping[str, tuple[str, ...]]) -> None:
    """A linear whose weight is computed has nothing to freeze: x weight^T + bias it is."""
    for node in [node for node in graph if node.op_type == LINEAR]:
        weight = node.inputs[1]
        if weight is None or weight.name in names:
            continue
        transposed = ir.node("Transpose", [weight], {"perm": [1, 0]})
        product = ir.node("MatMul", [node.inputs[0], transposed.outputs[0]])
        nodes = [transposed, product]
        if len(node.inputs) > 2:
            nodes.append(ir.node("Add", [product.outputs[0], node.inputs[2]]))
        last = nodes[-1].outputs
        replace_nodes_and_values(graph, node, [node], nodes, node.outputs, last)


def _name_ports(graph: ir.Graph, form: Form) -> None:
    inputs = graph.inputs[: len(form.inputs)]
    for value, port in [
        *zip(inputs, form.inputs, strict=True),
        *zip(graph.outputs, form.outputs, strict=True),
    ]:
        _check_axes(value, port)
        value.name = port.name
        value.shape = ir.Shape(port.axes)


def _check_axes(value: ir.Value, port: Port) -> None:
    """A size that the capture fixed although the form names it would fail at run time only."""
    found = () if value.shape is None else tuple(value.shape)
    fixed = [isinstance(size, int) for size in found]
    if fixed != [isinstance(axis, int) for axis in port.axes]:
        raise ParetuneError(f"'{port.name}' was captured as {list(found)}, not {list(port.axes)}")


def _name_linears(graph: ir.Graph, form: Form, names: Mapping[str, tuple[str, ...]]) -> None:
    """Linears are named by the module whose weight they use; tied ones by the linear's own."""
    modules = {
        name for name, module in form.module.named_modules() if isinstance(module, torch.nn.Linear)
    }
    for node in graph:
        if node.op_type == LINEAR and (weight := node.inputs[1]) is not None:
            owners = [name.removesuffix(".weight") for name in names[weight.name or ""]]
            node.name = next((name for name in owners if name in modules), owners[0])


def _stripped(model: ir.Model) -> ir.Model:
    """Without the exporter's notes and the shapes between, whose symbols mean nothing here."""
    ports = {*model.graph.inputs, *model.graph.outputs}
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in ports:
                value.shape, value.type = None, None
    model.graph.name = "paretune"
    model.producer_name, model.producer_version = "paretune", None
    return model
