"""linear(h, W0, bias0)  ->  linear(h, W, bias)   with W [labels, in] and bias [labels] trained"""

from collections.abc import Mapping

import torch
from torch import nn

from compiler.graph import Graph, attribute, linears, rebuilt

STANDARD_DEVIATION = 0.02


def train_classifier(
    graph: Graph, site: str, values: Mapping[str, torch.Tensor]
) -> dict[str, nn.Parameter]:
    """Put a tenant's own head in the place of the one at `site`; returns its parameters.

    `values` holds "<site>.weight" and "<site>.bias" among others.
    """
    head = next(linear for linear in linears(graph) if linear.name == site)
    dtype = attribute(graph.module, head.weight).dtype
    trained = {}
    arguments = [head.input]
    with graph.module.graph.inserting_before(head.node):
        for part in ("weight", "bias"):
            name = f"tenant_classifier_{part}"
            parameter = nn.Parameter(values[f"{site}.{part}"].clone())
            trained[f"{site}.{part}"] = parameter
            graph.module.register_parameter(name, parameter)
            value = graph.module.graph.get_attr(name)
            if dtype != torch.float32:
                value = graph.module.graph.call_method("to", (value, dtype))
            arguments.append(value)
    head.node.args = tuple(arguments)
    rebuilt(graph)
    return trained


def initial_classifier(
    site: str, labels: int, in_features: int, seed: int
) -> dict[str, torch.Tensor]:
    """weight N(0, 0.02^2) [labels, in] and bias 0 [labels], as transformers starts a head."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(labels, in_features, generator=generator) * STANDARD_DEVIATION
    return {f"{site}.weight": weight, f"{site}.bias": torch.zeros(labels)}
