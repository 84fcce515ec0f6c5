"""Bytes that lie there throughout a training step: weights, adapters and optimizer states."""

from planner.architecture import Architecture
from planner.architecture.record import UNFORMATTED
from planner.cost.adapter import AdapterCost
from planner.cost.elementwise import larger, where
from planner.cost.step import Step
from planner.cost.weights import BITS_PER_WEIGHT, FP32, QUANTISED, weights_bytes

STATE_BLOCK = 256
"""Numbers that share an fp32 scale in an 8-bit optimizer (Dettmers et al., 2022)."""
GALORE_RANK = 128
"""Of GaLore's projection where a plan gives none (Zhao et al., 2024, arXiv 2403.03507)."""


def stored_weights_bytes(shape: Architecture, step: Step) -> float:
    framework = step.program
    if step.trains_base:
        return shape.parameters * step.trained_element
    head = shape.vocab * shape.hidden if shape.kind != "encoder" else 0
    quantised = step.format in QUANTISED
    format_ = step.compute if framework.dense_in_compute and not quantised else step.format
    other = FP32 if format_ == "fp32" else step.stream_element
    stored = weights_bytes(shape, format_, other)
    if shape.tied and not framework.ties_head:
        stored += head * other
    if quantised and framework.quantises_head:
        stored -= head * (other - BITS_PER_WEIGHT[format_] / 8)
    if quantised and not framework.quantises_experts:
        stored += shape.expert_parameters * (other - BITS_PER_WEIGHT[format_] / 8)
    return stored


def adapters_bytes(adapter: AdapterCost, step: Step, head: int) -> float:
    """And of the `head` numbers of a classifier."""
    if step.trains_base:
        return head * FP32
    numbers = (adapter.stored_bytes + adapter.shared_bytes) / FP32
    return larger(numbers, adapter.trainable_parameters) * step.adapter_element + head * FP32


def optimizer_bytes(
    shape: Architecture, adapter: AdapterCost, step: Step, head: int, width: int
) -> float:
    """Of trained numbers of `width` bytes, `head` of them a classifier's."""
    numbers = adapter.optimizer_elements + 2 * head
    match step.optimizer:
        case "adamw":
            return width * numbers
        case "adamw8bit":
            return (1 + FP32 / STATE_BLOCK) * numbers
        case "galore" if step.trains_base:
            # A method that projects says to what rank.
            own = adapter.optimizer_elements != 2 * adapter.trainable_parameters
            return width * where(own, numbers, _galore_numbers(shape) + 2 * head)
        case "galore":
            return width * numbers
        case _:
            # Plain SGD has no state; pages of a paged optimizer are not the allocator's.
            return 0.0 * numbers


def _galore_numbers(shape: Architecture) -> int:
    """Moments of the projected gradients of linears with their projections; others in full."""
    numbers = 2 * (shape.parameters - shape.linear_parameters)
    for target in shape.targets:
        if target.role not in UNFORMATTED:
            narrow, wide = sorted((target.out_features, target.in_features))
            rank = min(GALORE_RANK, narrow)
            numbers += 2 * rank * wide + rank * narrow
    return numbers
