"""linear(h, W0, bias0)  ->  linear(h, W, bias)   with W [labels, in] and bias [labels] trained"""

from collections.abc import Mapping

import torch
from torch import nn

from compiler.graph import Graph, attribute, linears, rebuilt
from planner.errors import IncompatibleError

CLASSIFIER = "classifier"
STANDARD_DEVIATION = 0.02


def train_classifier(
    graph: Graph, values: Mapping[str, torch.Tensor]
) -> dict[str, nn.Parameter]:
    """Put a tenant's own head in the place of the base model's; returns its parameters."""
    head = next((linear for linear in linears(graph) if linear.name == CLASSIFIER), None)
    if head is None:
        raise IncompatibleError(f"the model has no linear named '{CLASSIFIER}' to put labels on")
    dtype = attribute(graph.module, head.weight).dtype
    trained = {}
    arguments = [head.input]
    with graph.module.graph.inserting_before(head.node):
        for part in ("weight", "bias"):
            key = f"{CLASSIFIER}.{part}"
            name = f"tenant_{CLASSIFIER}_{part}"
            trained[key] = nn.Parameter(values[key].clone())
            graph.module.register_parameter(name, trained[key])
            value = graph.module.graph.get_attr(name)
            if dtype != torch.float32:
                value = graph.module.graph.call_method("to", (value, dtype))
            arguments.append(value)
    head.node.args = tuple(arguments)
    rebuilt(graph)
    return trained


def initial_classifier(labels: int, in_features: int, seed: int) -> dict[str, torch.Tensor]:
    """weight N(0, 0.02^2) [labels, in] and bias 0 [labels], as transformers starts a head."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(labels, in_features, generator=generator) * STANDARD_DEVIATION
    return {f"{CLASSIFIER}.weight": weight, f"{CLASSIFIER}.bias": torch.zeros(labels)}
