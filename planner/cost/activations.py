"""Bytes per token that one pass keeps for the backward pass, by the structure of the model.

A tensor is kept where some gradient needs it: with frozen weights a linear keeps nothing, a norm
its input, the product with the gate both factors, attention query, key, value, output and a
log-sum-exp. What the adapters keep comes from their declarations (planner.cost.adapter).
"""

from typing import NamedTuple

from planner.architecture import Architecture
from planner.cost.elementwise import where
from planner.cost.framework import Framework
from planner.cost.weights import FP32

ROUTING_INDICES = 4 * 8
"""Bytes of 64-bit indices that a chosen expert takes: its number, and three orders of the tokens
(transformers, integrations/moe.py)."""


class Pass(NamedTuple):
    """What the activations depend on: tokens of a sequence, bytes of the arithmetic and of what
    flows between the products, the program.

    `attention` is "flash" or "full"; `trains_norms` keeps what their gradients need.
    """

    sequence_length: float
    element: int
    stream: int
    attention: str
    framework: Framework
    trains_norms: bool = False


def blocks(shape: Architecture) -> int:
    return shape.layers + shape.encoder_layers


def block_bytes(shape: Architecture, run: Pass) -> float:
    """Of the mean block, without its adapters."""
    cross = shape.layers / blocks(shape) if shape.kind == "encoder_decoder" else 0
    attention = (1 + cross) * attention_bytes(shape, run)
    return _norms(shape, run) / blocks(shape) + attention + mlp_bytes(shape, run)


def attention_bytes(shape: Architecture, run: Pass) -> float:
    kept = _attention(shape, run) + _scores(shape, run) + _mask(shape, run)
    return kept + _dropped(shape, run)


def outside_bytes(shape: Architecture, run: Pass) -> float:
    """Of the last norm and of what the head reads; the loss counts for itself."""
    return _norm(shape, run) + run.element * shape.hidden


def _norm(shape: Architecture, run: Pass) -> float:
    """The fp32 copy that an RMSNorm squares, or what the LayerNorm kernel reads."""
    kept = FP32 if shape.norm == "rmsnorm" else run.stream
    if run.trains_norms and shape.norm == "rmsnorm":
        kept += run.element
    return float(kept * shape.hidden)


def _norms(shape: Architecture, run: Pass) -> float:
    """Of all blocks; the first norm reads what no gradient reaches."""
    wide = shape.wide_norms - 1
    if shape.parallel and shape.norm == "layernorm":
        # Both norms of a block read the same residual.
        wide = shape.layers
    kept = (wide - (not run.trains_norms)) * _norm(shape, run)
    if shape.qk_norm:
        heads = (shape.heads + shape.kv_heads) * shape.head_dim
        kept += shape.layers * heads * (FP32 if shape.norm == "rmsnorm" else run.stream)
    return kept


def _attention(shape: Architecture, run: Pass) -> float:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    own = queries + 2 * keys
    fused = run.framework.fuses_qkv or shape.fused_qkv
    if shape.kv_heads < shape.heads and run.framework.repeats_keys:
        kept = 3 * queries
    elif fused and shape.position == "rotary" and run.attention == "flash":
        # Query and key are rotated copies; value keeps the product it is a view of.
        kept = queries + keys + own
    else:
        kept = own
    if run.attention == "full":
        # A plain product keeps copies of its factors, and nobody the output.
        return float(run.element * kept)
    return float(run.element * (kept + queries) + FP32 * shape.heads)


def _scores(shape: Architecture, run: Pass) -> float:
    """Of full attention: the softmax in fp32, what the product with the values reads where that is
    another tensor, which of them were dropped, and capped scores.
    """
    if run.attention == "flash":
        return 0.0
    drops = run.framework.drops and shape.drops_scores
    read = run.element if drops or run.element != FP32 else 0
    capped = run.element if shape.caps_scores else 0
    return (FP32 + read + drops + capped) * shape.heads * run.sequence_length


def _dropped(shape: Architecture, run: Pass) -> float:
    """Which numbers that a sublayer adds to the stream were dropped."""
    return float(shape.hidden) if run.framework.drops and shape.drops_stream else 0.0


def _mask(shape: Architecture, run: Pass) -> float:
    """Every attention keeps its mask in the arithmetic's type, which all heads share; a causal
    triangle and an image need none, a sliding window does where it is shorter than the sequence.
    """
    if run.attention != "flash" or not shape.vocab:
        return 0.0
    row = run.element * run.sequence_length
    if shape.kind != "decoder":
        return row
    if not shape.sliding_window:
        return 0.0
    share = shape.sliding_layers / shape.layers
    return where(run.sequence_length > shape.sliding_window, row * share, 0.0)


def mlp_bytes(shape: Architecture, run: Pass) -> float:
    width = shape.active_intermediate
    kept = run.stream * mlp_tensors(shape, run.framework) * width
    if run.framework.drops and shape.drops_inner:
        kept += width
    return float(kept) + _routing(shape, run) + _dropped(shape, run)


def _routing(shape: Architecture, run: Pass) -> float:
    """The router's gradient needs what the experts gave, and its softmax in fp32."""
    outputs = shape.weighted_outputs * run.stream * shape.hidden
    return float(outputs + FP32 * shape.experts + ROUTING_INDICES * shape.experts_per_token)


def mlp_tensors(shape: Architecture, framework: Framework) -> int:
    """Tensors as wide as the MLP that it keeps: the activation's input and its own, and the
    factors of the gate's product.
    """
    if shape.gated:
        return 3
    written_out = shape.activation == "gelu_tanh" and not framework.fuses_gelu
    return 4 if written_out else 1
