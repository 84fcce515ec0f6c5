"""Every entry is the declared initial value."""

import torch

from compiler.initializers import Start
from planner.errors import ParetuneError


def initialize(start: Start) -> torch.Tensor:
    if start.spec.initial_value is None:
        raise ParetuneError(
            f"tensor '{start.spec.name}' of method '{start.method.name}' is constant but declares "
            "no initial value"
        )
    return torch.full(start.shape, start.spec.initial_value)
