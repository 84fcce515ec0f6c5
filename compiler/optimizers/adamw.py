"""AdamW (Loshchilov & Hutter, 2019, arXiv 1711.05101)."""

from typing import Any

import torch

from compiler.optimizers import Say


def build(groups: list[dict[str, Any]], say: Say) -> torch.optim.Optimizer:
    # Fused: a third of foreach's time on a CPU, and no temporaries as large as the parameters.
    return torch.optim.AdamW(groups, lr=0.0, fused=True)
