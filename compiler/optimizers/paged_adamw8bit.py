"""AdamW with 8-bit states that page to host memory (bitsandbytes); plain AdamW off CUDA."""

import importlib
from typing import Any, cast

import torch

from compiler.optimizers import Say, adamw


def build(groups: list[dict[str, Any]], say: Say) -> torch.optim.Optimizer:
    device = groups[0]["params"][0].device if groups else torch.device("cpu")
    if device.type != "cuda":
        say(f"paged_adamw8bit needs CUDA; training on {device.type} with plain AdamW instead")
        return adamw.build(groups, say)
    return paged(groups)


def paged(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    # Only the gpu extra installs bitsandbytes, and a CPU build must not need it.
    optimizer: Any = importlib.import_module("bitsandbytes.optim").PagedAdamW8bit(groups, lr=0.0)
    # Allocated here rather than at the first step: an imported state is copied into these buffers
    # and so stays paged.
    for group_index, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, group_index, index)
    return cast(torch.optim.Optimizer, optimizer)
