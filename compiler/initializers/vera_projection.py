"""VeRA's shared projections, bit for bit as PEFT draws them: U(-sqrt(6/fan_in), sqrt(6/fan_in))."""

import math

import torch

from compiler.initializers import Start


def initialize(start: Start) -> torch.Tensor:
    # PEFT draws A and then B from one generator, so a projection replays those declared before it.
    generator = torch.Generator().manual_seed(start.seed)
    for spec in start.method.model_tensors():
        if spec.initializer == start.spec.initializer:
            tensor = _draw(spec.resolve(start.dimensions), generator)
        if spec.name == start.spec.name:
            break
    return tensor


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    # PEFT's order of operations; another order rounds the bound differently.
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
