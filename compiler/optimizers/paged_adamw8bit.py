"""AdamW with 8-bit states that page to host memory (bitsandbytes); plain AdamW off CUDA."""

import importlib
from typing import Any

import torch

from compiler.optimizers import Say, adamw


def build(groups: list[dict[str, Any]], say: Say) -> torch.optim.Optimizer:
    device = groups[0]["params"][0].device if groups else torch.device("cpu")
    if device.type != "cuda":
        say(f"paged_adamw8bit needs CUDA; training on {device.type} with plain AdamW instead")
        return adamw.build(groups, say)
    # Only the gpu extra installs bitsandbytes, and a CPU build must not need it.
    paged = importlib.import_module("bitsandbytes.optim").PagedAdamW8bit
    optimizer: torch.optim.Optimizer = paged(groups, lr=0.0)
    return optimizer
