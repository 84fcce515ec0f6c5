"""Skeleton + frozen weights + sites -> model.onnx that serves every tenant through the bank.

The graph gains two inputs, bank u8[bank_bytes] and slot i64[batch]; site i of `sites` is entry i
of each slot's directory. Linears that are no site are the same op without a bank: its rows do not
depend on one another, which the library's matrix products do not promise.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from compiler.export.attach_weights import Precision, Weights, attach_weights
from compiler.export.external_data import write_external_data
from compiler.export.skeleton import ALIASES, Skeleton
from compiler.manifest import StoredArray
from compiler.ops.quant_low_rank_matmul import register_schema
from planner.method import Target

MODEL = "model.onnx"
DATA = "model.onnx.data"


def write_unmerged(
    skeleton: Skeleton,
    weights: Weights,
    sites: Sequence[Target],
    folder: Path,
    *,
    precision: Precision,
) -> dict[str, StoredArray]:
    """Writes model.onnx and its data; returns where each initializer lies, by name.

    The format of each weight is that of the value given for it. Raises IncompatibleError when a
    parameter is missing, a shape differs or a site is not in the graph.
    """
    return write_graph(skeleton.model(), weights, sites, folder, precision=precision)


def write_graph(
    model: ir.Model,
    weights: Weights,
    sites: Sequence[Target],
    folder: Path,
    *,
    precision: Precision,
) -> dict[str, StoredArray]:
    """The same for a skeleton already read, which is rewritten."""
    register_schema()
    stored = write_external_data(attach_weights(model, weights, sites, precision), folder / DATA)
    del model.metadata_props[ALIASES]
    proto = ir.serde.serialize_model(model)
    (folder / MODEL).write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(folder / MODEL)
    return stored
