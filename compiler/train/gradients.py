"""g <- g / targets * min(1, max_norm / ||g / targets||): sums become means, then are clipped."""

from collections.abc import Iterable

import torch


def scale_gradients(
    parameters: Iterable[torch.nn.Parameter], targets: int, max_norm: float
) -> float:
    """In place; returns the total norm before clipping. Parameters without gradient are skipped."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients)) / targets
    clip = min(1.0, max_norm / (norm + 1e-6))
    for gradient in gradients:
        gradient.mul_(clip / targets)
    return norm
