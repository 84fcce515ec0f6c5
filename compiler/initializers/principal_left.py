"""B0 = U sqrt(S / scaling) over W's leading singular directions (PiSSA, arXiv 2404.02948)."""

import torch

from compiler.initializers import Start


def initialize(start: Start) -> torch.Tensor:
    u, s, _ = start.target_weight().singular
    left = u[:, : start.rank] * (s[: start.rank] / start.scaling).sqrt()
    # A rank above min(out, in) has no further directions: those columns stay zero.
    return torch.nn.functional.pad(left, (0, start.rank - left.shape[1]))
