"""Form -> ONNX as the exporter gives it, with every `aten.linear` one node ai.paretune::Linear.

Nothing is optimised yet: the exporter's own passes would fold and merge weights by their values.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import onnx
import onnx_ir as ir
import torch
from onnxscript.values import Opset

from compiler.export.form import Form, dynamic_shapes
from planner.errors import ParetuneError

DOMAIN = "ai.paretune"
OPSET = 23
LINEAR = "Linear"


def export_onnx(form: Form) -> ir.Model:
    """Raises ParetuneError when the module cannot be captured or has no ONNX form."""
    _register_linear()
    paretune = Opset(DOMAIN, 1)

    def linear(x: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        inputs = (x, weight) if bias is None else (x, weight, bias)
        return cast(ir.Value, paretune.Linear(*inputs))

    module = form.module.eval().requires_grad_(requires_grad=False)
    with _quiet(), torch.no_grad():
        try:
            captured = torch.export.export(
                module, form.example, dynamic_shapes=dynamic_shapes(form), strict=False
            )
            program = torch.onnx.export(
                captured,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table={torch.ops.aten.linear.default: linear},
                optimize=False,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise ParetuneError(
                f"{type(module).__name__} cannot be exported to ONNX: {reason}",
                hint="the module's forward must be free of data-dependent Python control flow",
            ) from error
    if program is None:
        raise ParetuneError(f"{type(module).__name__} cannot be exported to ONNX")
    return program.model


def _register_linear() -> None:
    if onnx.defs.has(LINEAR, DOMAIN):
        return
    parameter = onnx.defs.OpSchema.FormalParameter
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    onnx.defs.register_schema(
        onnx.defs.OpSchema(
            LINEAR,
            DOMAIN,
            1,
            doc="y = x weight^T + bias, as torch.nn.functional.linear.",
            inputs=[
                parameter("x", "T"),
                parameter("weight", "T"),
                parameter("bias", "T", param_option=optional),
            ],
            outputs=[parameter("y", "T")],
            type_constraints=[("T", ["tensor(float)"], "float32")],
        )
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and warns about itself; its errors are raised all the same."""
    exporter_logger = logging.getLogger("torch.onnx")
    level = exporter_logger.level
    exporter_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter_logger.setLevel(level)
