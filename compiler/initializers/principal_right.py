"""A0 = sqrt(S / scaling) V^T over W's leading singular directions (PiSSA, arXiv 2404.02948)."""

import torch

from compiler.initializers import Start


def initialize(start: Start) -> torch.Tensor:
    _, s, vt = start.target_weight().singular
    right = (s[: start.rank] / start.scaling).sqrt()[:, None] * vt[: start.rank]
    # A rank above min(out, in) has no further directions: those rows stay zero.
    return torch.nn.functional.pad(right, (0, 0, 0, start.rank - right.shape[0]))
