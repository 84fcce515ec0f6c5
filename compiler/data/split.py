"""Examples → training and validation examples."""

from collections.abc import Sequence

import numpy as np

from compiler.data.example import Example
from planner.errors import UsageError

Split = tuple[tuple[Example, ...], tuple[Example, ...]]


def split(examples: Sequence[Example], fraction: float, seed: int) -> Split:
    """(training, validation), neither empty, each in file order.

    Examples of one prompt stay on one side, so validation never shows a prompt that was trained.
    """
    groups = sorted({example.group for example in examples})
    if len(groups) < 2:
        raise UsageError(
            "the data holds a single prompt, so nothing is left to validate on",
            hint="training needs at least two lines with different prompts",
        )
    order = np.random.default_rng(seed).permutation(groups)
    count = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    held = {int(group) for group in order[:count]}
    training = tuple(e for e in examples if e.group not in held)
    return training, tuple(e for e in examples if e.group in held)
