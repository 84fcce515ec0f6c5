"""config.json -> the compiler's base model over fake tensors, which have shapes and no data."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import Argument, map_aggregate
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from compiler.base_model import CAUSAL_LM, DTYPES, Base, captured, frozen_paths
from compiler.graph import Graph, attribute
from compiler.huggingface import CausalLM, MeanPoolClassifier, SequenceClassifier
from compiler.quantized import BLOCK_SIZE, NESTED_BLOCK_SIZE, QuantizedWeight
from compiler.roles import targets
from compiler.training_graph import Start, start
from planner.errors import IncompatibleError
from planner.plan import Candidate

CPU = torch.device("cpu")
META = torch.device("meta")


def read_settings(config: Mapping[str, object]) -> PreTrainedConfig:
    """The model's config.json as transformers reads it; raises IncompatibleError."""
    fields = {name: value for name, value in config.items() if name != "model_type"}
    try:
        settings: PreTrainedConfig = AutoConfig.for_model(str(config.get("model_type")), **fields)
    except (ValueError, KeyError, TypeError) as error:
        raise IncompatibleError(
            f"transformers has no '{config.get('model_type')}' model of this config: {error}"
        ) from error
    return settings


def at_depth(settings: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The same model with its first `layers` layers alone."""
    shorter = copy.deepcopy(settings)
    for name in layer_lists(settings):
        setattr(shorter, name, getattr(settings, name)[:layers])
    shorter.num_hidden_layers = layers
    return shorter


def layer_lists(settings: PreTrainedConfig) -> dict[str, list[object]]:
    """The fields that say something of every layer, such as which of them look far."""
    layers = settings.num_hidden_layers
    fields = settings.to_dict().items()
    return {name: list(v) for name, v in fields if isinstance(v, list) and len(v) == layers}


def fake_graph(
    settings: PreTrainedConfig, task: str, labels: int, compute: str, longest: int
) -> Graph:
    """The training graph that a build captures in the compute dtype, over fake parameters."""
    with META:
        module = _module(settings, task, labels)
    module = module.eval().requires_grad_(requires_grad=False).to(DTYPES[compute])
    with FakeTensorMode(allow_non_fake_inputs=True):
        _replace_tensors(module, CPU)
    return captured(module, task, longest)


def meta_graph(graph: Graph) -> Graph:
    """The same graph on the meta device, where an operation computes shapes and nothing else."""
    current = graph.copied()
    _replace_tensors(current.module, META)
    for module in current.module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                node.args = cast(tuple[Argument, ...], map_aggregate(node.args, _meta_device))
                node.kwargs = cast(dict[str, Argument], map_aggregate(node.kwargs, _meta_device))
            module.recompile()
    return current


def fake_base(graph: Graph, task: str, weight_format: str) -> Base:
    """The base of a build over that graph; its 4-bit blocks are allocated and never written."""
    found = targets(graph)
    quantized = {}
    if weight_format == "nf4":
        for path in frozen_paths(graph, found):
            out_features, in_features = attribute(graph.module, path).shape
            quantized[path] = _unwritten((out_features, in_features))
    return Base(task, weight_format, graph, found, quantized)


def fake_start(base: Base, candidate: Candidate, labels: int | None) -> Start:
    """The starting tensors of a tenant, on the meta device."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        begin = start(base, candidate, labels, seed=0)
    values = {name: _without_data(tensor, META) for name, tensor in begin.owned.values.items()}
    head = {name: _without_data(tensor, META) for name, tensor in begin.head.items()}
    return replace(begin, owned=replace(begin.owned, values=values), head=head)


def _replace_tensors(module: nn.Module, device: torch.device) -> None:
    """Put a frozen tensor without data in each one's place; what was tied stays tied."""
    copies: dict[int, torch.Tensor] = {}
    for inner in module.modules():
        for tensors in (inner._parameters, inner._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in copies:
                        copies[id(tensor)] = _without_data(tensor, device)
                    tensors[name] = copies[id(tensor)]  # type: ignore[assignment]


def _without_data(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=False)
    return empty


def _meta_device(argument: Argument) -> Argument:
    return META if isinstance(argument, torch.device) else argument


def _module(settings: PreTrainedConfig, task: str, labels: int) -> nn.Module:
    def of(factory: Any) -> Any:  # noqa: ANN401  transformers' classes have no types
        return factory.from_config(settings, attn_implementation="sdpa", dtype=torch.float32)

    if task == CAUSAL_LM:
        return CausalLM(of(AutoModelForCausalLM))
    if any("ForSequenceClassification" in name for name in settings.architectures or ()):
        settings.num_labels = labels
        return SequenceClassifier(of(AutoModelForSequenceClassification))
    return MeanPoolClassifier(of(AutoModel), settings.get_text_config().hidden_size, labels)


def _unwritten(shape: tuple[int, int]) -> QuantizedWeight:
    """The arrays that nf4.quantize gives a weight; memory that nothing touches costs nothing."""
    count = shape[0] * shape[1]
    blocks = -(-count // BLOCK_SIZE)
    return QuantizedWeight(
        shape=shape,
        codes=np.zeros(-(-count // 2), np.uint8),
        absmax=np.zeros(blocks, np.uint8),
        codebook=np.zeros(16, np.float32),
        nested_absmax=np.zeros(-(-blocks // NESTED_BLOCK_SIZE), np.float32),
        nested_codebook=np.zeros(256, np.float32),
        offset=np.zeros(1, np.float32),
    )
