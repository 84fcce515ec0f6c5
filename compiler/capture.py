"""nn.Module -> Graph: torch.export's training graph, cleaned of what only guards or annotates."""

from collections.abc import Mapping

import torch
from torch import nn

from compiler.graph import Graph
from compiler.passes.simplify import simplify
from planner.errors import ParetuneError

DYNAMIC = torch.export.Dim.DYNAMIC


def capture(
    module: nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    dynamic_axes: Mapping[str, tuple[int, ...]],
) -> Graph:
    """Capture a module; `dynamic_axes` names, per input, the axes whose size may change.

    The graph shares the module's parameters, frozen. Raises ParetuneError when torch.export
    cannot take the module.
    """
    module = module.eval().requires_grad_(requires_grad=False)
    shapes = {name: dict.fromkeys(axes, DYNAMIC) for name, axes in dynamic_axes.items()}
    try:
        program = torch.export.export(module, example_inputs, dynamic_shapes=shapes, strict=False)
    except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.UserError) as error:
        raise ParetuneError(
            f"torch.export cannot capture {type(module).__name__}: {error}",
            hint="the module's forward must be free of data-dependent Python control flow",
        ) from error
    return simplify(Graph(program.module(check_guards=False), tuple(dynamic_axes)).copied())
