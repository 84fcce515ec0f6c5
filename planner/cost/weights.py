"""Bytes of a base model's weights in their format."""

from planner.architecture import Architecture

BLOCK_SIZE = 64
NESTED_BLOCK_SIZE = 256
BITS_PER_WEIGHT = {
    "fp32": 32.0,
    "bf16": 16.0,
    "int8": 8.0,
    "nf4": 4.0 + 8 / BLOCK_SIZE + 32 / (BLOCK_SIZE * NESTED_BLOCK_SIZE),
    "nf4_single": 4.0 + 32 / BLOCK_SIZE,
}
"""NF4: a 4-bit code, an 8-bit scale per 64 weights, an fp32 scale per 256 of those; "nf4_single"
without double quantisation: an fp32 scale per 64 weights (QLoRA, Dettmers et al., 2023, arXiv
2305.14314, section 3). The scales of int8, one per output, are below its rounding."""

QUANTISED = ("int8", "nf4", "nf4_single")
FP32 = 4
"""Bytes of a number."""
COMPUTE_BYTES = {"fp32": FP32, "bf16": 2}


def weights_bytes(shape: Architecture, format_: str, other_bytes: int) -> float:
    """Linears in their format; embeddings, head, norms and biases at `other_bytes` each."""
    linear = shape.linear_parameters
    return linear * BITS_PER_WEIGHT[format_] / 8 + (shape.parameters - linear) * other_bytes
