"""Expected quality of method, rank, targets and format, with its band and its evidence."""

from planner.quality.causes import (
    BITS_PER_PARAMETER,
    BITS_PER_TOKEN,
    LABEL_FAMILIES,
    REFERENCE,
    data_bits,
)
from planner.quality.expected import (
    NOISE_POINTS,
    NOTHING,
    TIE_POINTS,
    UNKNOWN,
    Quality,
    Study,
    claims,
    evidence,
    format_quality,
    method_quality,
    noise,
    rank_quality,
    serving_quality,
    target_quality,
    unranked,
)

__all__ = [
    "BITS_PER_PARAMETER",
    "BITS_PER_TOKEN",
    "LABEL_FAMILIES",
    "NOISE_POINTS",
    "NOTHING",
    "REFERENCE",
    "TIE_POINTS",
    "UNKNOWN",
    "Quality",
    "Study",
    "claims",
    "data_bits",
    "evidence",
    "format_quality",
    "method_quality",
    "noise",
    "rank_quality",
    "serving_quality",
    "target_quality",
    "unranked",
]
