"""Cosine with linear warm-up: the learning rate's factor as a pure function of the step."""

import math


def warmup_steps(total_steps: int, fraction: float) -> int:
    return math.ceil(total_steps * fraction)


def factor(step: int, total_steps: int, warmup: int) -> float:
    """In (0, 1] for step in [0, total_steps): reaches 1 at the end of warm-up, 0 after the end."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
