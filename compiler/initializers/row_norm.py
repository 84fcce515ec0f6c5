"""||W|| per row: DoRA's starting magnitude."""

import torch

from compiler.initializers import Start


def initialize(start: Start) -> torch.Tensor:
    weight = start.target_weight().dense
    # The same expression as planner.update.row_norm, so that the starting scale is exactly one.
    return (weight * weight).sum(1) ** 0.5
