"""What a difference in quality depends on, as numbers: capacity, examples, scale, the score."""

import math

REFERENCE = "lora"

BITS_PER_PARAMETER = 2.0
BITS_PER_TOKEN = 1.0
USABLE_SHARE = 0.25
"""Of the rated capacity: losses start about two doublings before it is full (claim-rank)."""
LABEL_FAMILIES = ("classification", "image")


def data_bits(family: str, examples: int, mean_tokens: int, labels: int = 2) -> float:
    """Bits that the data bring at most: one a token, or one label an example."""
    if family in LABEL_FAMILIES:
        return examples * math.log2(labels)
    return examples * mean_tokens * BITS_PER_TOKEN


def shortage(trainable: float, bits: float) -> float:
    """Doublings of trained parameters that the data ask for: log2(1 + bits / usable capacity).

    Near 0 where capacity is plentiful, and one more per halving where it is not.
    """
    return math.log2(1.0 + bits / (BITS_PER_PARAMETER * USABLE_SHARE * trainable))


MANY_EXAMPLES = 10_000


def few(examples: int | None) -> float:
    """Tenfolds of examples that are missing to plenty."""
    return 0.0 if examples is None else max(0.0, math.log10(MANY_EXAMPLES / examples))


LARGE_PROMPTED_B = 10.0
"""Where prompt tuning meets full fine-tuning on simple tasks (claim-prompt-scale), in 1e9."""


def scale(parameters_b: float) -> float:
    """Tenfolds of parameters that are missing to a large model's, as a number <= 0."""
    return min(math.log10(parameters_b / LARGE_PROMPTED_B), 0.0)


LARGE_QUANTISED_B = 7.0
SMALL_QUANTISED_B = 0.135


def smallness(parameters_b: float) -> float:
    """0 at 7e9 parameters and above, 1 at 135e6, by the logarithm."""
    found = math.log(LARGE_QUANTISED_B / parameters_b)
    return max(0.0, found / math.log(LARGE_QUANTISED_B / SMALL_QUANTISED_B))


EVEN_POINTS = 25.0
"""Points per unit of log-odds at a score of 50: 100 p (1 - p)."""
LEAST_SCORE = 2.0
"""Scores nearer to 0 or 100 say little in log-odds."""


def log_odds(score: float) -> float:
    share = _inner(score)
    return math.log(share / (1.0 - share))


def sensitivity(score: float) -> float:
    """Points at that score per point at 50: 4 p (1 - p); effects fade towards 0 and 100."""
    share = _inner(score)
    return 4.0 * share * (1.0 - share)


def _inner(score: float) -> float:
    return min(max(score, LEAST_SCORE), 100.0 - LEAST_SCORE) / 100.0
