"""The exported graph with constants folded, what repeats removed, and attention fused."""

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer
from onnxscript.rewriter import onnx_fusions

from compiler.export.fuse_attention import fuse_attention
from compiler.export.gather_positions import gather_positions
from compiler.export.name_sizes import name_sizes
from compiler.export.spread_rotations import spread_rotations


def simplify_graph(model: ir.Model) -> None:
    name_sizes(model)
    optimizer.optimize_ir(model)
    onnx_fusions.fuse(model)
    spread_rotations(model)
    fuse_attention(model)
    gather_positions(model)
    # The rotary fusion emits one Cos and one Sin per use.
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.NameFixPass(),
    )(model)
