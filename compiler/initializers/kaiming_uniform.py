"""U(-1/sqrt(in), 1/sqrt(in)): Kaiming uniform with a = sqrt(5), as PEFT starts LoRA's A."""

import torch

from compiler.initializers import Start


def initialize(start: Start) -> torch.Tensor:
    bound = start.shape[-1] ** -0.5
    return torch.empty(start.shape).uniform_(-bound, bound, generator=start.generator())
