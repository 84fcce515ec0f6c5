"""config.json -> the compiler's base model over fake tensors, which have shapes and no data."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from compiler.base_model import CAUSAL_LM, DTYPES, Base, captured, frozen_paths
from compiler.build import SPARE_LABELS
from compiler.graph import Graph, attribute
from compiler.huggingface import CausalLM, MeanPoolClassifier, SequenceClassifier
from compiler.quantized import BLOCK_SIZE, NESTED_BLOCK_SIZE, QuantizedWeight
from compiler.roles import targets
from planner.errors import IncompatibleError

Config = Mapping[str, object]


def fake_graph(
    config: Config, task: str, compute: str, longest: int, mode: FakeTensorMode
) -> Graph:
    """The training graph that a build captures in the compute dtype; parameters are fake.

    Raises IncompatibleError when transformers does not know the architecture.
    """
    try:
        with torch.device("meta"):
            module = _module(config, task)
    except (ValueError, KeyError, TypeError) as error:
        raise IncompatibleError(
            f"transformers cannot build the '{config.get('model_type')}' model: {error}"
        ) from error
    module = module.eval().requires_grad_(requires_grad=False).to(DTYPES[compute])
    with mode:
        module = module.to_empty(device="cpu")
    return captured(module, task, longest)


def fake_base(graph: Graph, task: str, weight_format: str) -> Base:
    """The base of a build over that graph; its 4-bit blocks are allocated and never written."""
    found = targets(graph)
    quantized = {}
    if weight_format == "nf4":
        for path in frozen_paths(graph, found):
            out_features, in_features = attribute(graph.module, path).shape
            quantized[path] = _unwritten((out_features, in_features))
    return Base(task, weight_format, graph, found, quantized)


def _module(config: Config, task: str) -> nn.Module:
    fields = {name: value for name, value in config.items() if name != "model_type"}
    settings = AutoConfig.for_model(config["model_type"], **fields)
    how = {"attn_implementation": "sdpa", "dtype": torch.float32}
    if task == CAUSAL_LM:
        return CausalLM(AutoModelForCausalLM.from_config(settings, **how))
    if any("ForSequenceClassification" in name for name in settings.architectures or ()):
        settings.num_labels = SPARE_LABELS
        return SequenceClassifier(AutoModelForSequenceClassification.from_config(settings, **how))
    encoder = AutoModel.from_config(settings, **how)
    return MeanPoolClassifier(encoder, settings.get_text_config().hidden_size, SPARE_LABELS)


def _unwritten(shape: tuple[int, int]) -> QuantizedWeight:
    """The arrays that nf4.quantize gives a weight; memory that nothing touches costs nothing."""
    count = shape[0] * shape[1]
    blocks = -(-count // BLOCK_SIZE)
    return QuantizedWeight(
        shape=shape,
        codes=np.empty(-(-count // 2), np.uint8),
        absmax=np.empty(blocks, np.uint8),
        codebook=np.empty(16, np.float32),
        nested_absmax=np.empty(-(-blocks // NESTED_BLOCK_SIZE), np.float32),
        nested_codebook=np.empty(256, np.float32),
        offset=np.empty(1, np.float32),
    )
