"""The base model of a build: its folder, its captured graph, its targets and its frozen weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from compiler import huggingface, nf4
from compiler.capture import capture
from compiler.graph import Graph, attribute, linears
from compiler.passes.use_causal_attention import use_causal_attention
from compiler.quantized import QuantizedWeight
from compiler.roles import targets
from planner.errors import UsageError, did_you_mean
from planner.method import ALL_LINEAR, ROLES, Method, Target

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EXAMPLE_SHAPE = (2, 16)
CAUSAL_LM = "causal_lm"


@dataclass(frozen=True)
class Base:
    """`graph` computes in fp32 over the weights of `format`, which only linears of the roles in
    ALL_LINEAR take; `quantized` holds the 4-bit ones by parameter path."""

    task: str
    format: str
    graph: Graph
    targets: tuple[Target, ...]
    quantized: Mapping[str, QuantizedWeight]

    @property
    def frozen(self) -> tuple[str, ...]:
        """Paths of the weights that take the format."""
        return frozen_paths(self.graph, self.targets)

    def weight(self, name: str) -> torch.Tensor:
        """The dense weight [out, in] that the target of that name is served with, fp32."""
        path = next(line.weight for line in linears(self.graph) if line.name == name)
        if path in self.quantized:
            return nf4.dequantize(self.quantized[path])
        return attribute(self.graph.module, path)


def frozen_paths(graph: Graph, found: Sequence[Target]) -> tuple[str, ...]:
    names = {target.name for target in found if target.role in ALL_LINEAR}
    return tuple(dict.fromkeys(line.weight for line in linears(graph) if line.name in names))


def frozen_weights(base: Base) -> dict[str, torch.Tensor | QuantizedWeight]:
    """Every parameter by name, as it is stored: the bits that were trained on."""
    weights: dict[str, torch.Tensor | QuantizedWeight] = dict(base.graph.module.state_dict())
    weights |= base.quantized
    if base.format == "bf16":
        for name in base.frozen:
            weights[name] = attribute(base.graph.module, name).to(torch.bfloat16)
    return weights


def load_base(folder: Path, task: str, weight_format: str, labels: int, longest: int) -> Base:
    """Capture a Hugging Face folder and freeze its weights in the format.

    `longest` is the longest sequence that will be trained.
    """
    module = load_module(folder, task, labels)
    graph = captured(module, task, longest)
    found = targets(graph)
    quantized: dict[str, QuantizedWeight] = {}
    for path in frozen_paths(graph, found):
        weight = attribute(graph.module, path)
        if weight_format == "nf4":
            quantized[path] = nf4.quantize(weight)
        elif weight_format == "bf16":
            weight.data.copy_(weight.to(torch.bfloat16))
    return Base(task, weight_format, graph, found, quantized)


def load_module(folder: Path, task: str, labels: int) -> torch.nn.Module:
    """The training form of a checkpoint."""
    if task == CAUSAL_LM:
        return huggingface.CausalLM(huggingface.load_causal_lm(folder))
    return huggingface.load_encoder(folder, labels)


def captured(module: torch.nn.Module, task: str, longest: int) -> Graph:
    """The training graph of a checkpoint's training form, for sequences up to `longest`."""
    ids = torch.zeros(EXAMPLE_SHAPE, dtype=torch.int64)
    if task == CAUSAL_LM:
        graph = capture(module, (ids,), {"input_ids": (0, 1)})
    else:
        both = (0, 1)
        graph = capture(
            module, (ids, torch.ones_like(ids)), {"input_ids": both, "attention_mask": both}
        )
    return use_causal_attention(graph, longest)


def select(found: Sequence[Target], wanted: Sequence[str], method: Method) -> tuple[Target, ...]:
    """The targets named by roles, "all-linear", module names or patterns, that the method adapts.

    Raises UsageError when an entry matches nothing.
    """
    chosen: dict[str, Target] = {}
    for entry in wanted:
        matching = [target for target in found if _matches(entry, target)]
        if not matching:
            names = sorted({target.name.rpartition(".")[2] for target in found} | set(ROLES))
            raise UsageError(
                f"no linear of the model matches the target '{entry}'; roles are "
                f"{', '.join(sorted({target.role for target in found}))}",
                hint=did_you_mean(entry, names),
            )
        inner = [t for t in matching if t.role in ALL_LINEAR or method.trains_base]
        if not inner:
            raise UsageError(
                f"the target '{entry}' is the model's {matching[0].role}, which is not adapted"
            )
        chosen |= {target.name: target for target in inner}
    adapted = tuple(
        target
        for target in found
        if target.name in chosen and (method.trains_base or method.tensors_for(target.role))
    )
    if not adapted:
        raise UsageError(
            f"{method.title} adapts none of the targets {', '.join(wanted)}",
            hint=f"it adapts {', '.join(method.targets)}",
        )
    return adapted


def _matches(entry: str, target: Target) -> bool:
    if entry == "all-linear":
        return target.role in ALL_LINEAR
    if entry in ROLES:
        return target.role == entry
    if target.name == entry or target.name.endswith(f".{entry}"):
        return True
    try:
        return re.fullmatch(entry, target.name) is not None
    except re.error as error:
        raise UsageError(f"the target '{entry}' is no pattern: {error}") from error
