"""Base graph + plan -> the graph that trains one tenant, its parameters and its loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from compiler.base import CAUSAL_LM, DTYPES, Base, select
from compiler.data import IGNORED
from compiler.graph import Graph, attribute
from compiler.initializers import initialize
from compiler.passes.checkpoint_blocks import checkpoint_blocks
from compiler.passes.expose_hidden import expose_hidden
from compiler.passes.insert_adapters import Tensors, insert_adapters
from compiler.passes.quantize_base import quantize_base
from compiler.passes.train_base import train_base
from compiler.passes.train_classifier import CLASSIFIER, initial_classifier, train_classifier
from compiler.train import TensorBatch, causal_lm_loss, classification_loss
from planner.method import Method, Target, method
from planner.plan import Candidate


@dataclass(frozen=True)
class Start:
    """Where one tenant's training starts: the method's tensors, a classifier's among them."""

    method: Method
    targets: tuple[Target, ...]
    tensors: Mapping[str, torch.Tensor]
    scaling: float

    def owned(self) -> Tensors:
        """The method's own tensors."""
        own = {k: v for k, v in self.tensors.items() if not k.startswith(f"{CLASSIFIER}.")}
        return Tensors(self.method, self.targets, own, dict.fromkeys(self._names(), self.scaling))

    def _names(self) -> list[str]:
        return [target.name for target in self.targets]


@dataclass(frozen=True)
class TrainingGraph:
    """`parameters` are the trained fp32 masters by adapter key; `loss` sums over a batch."""

    graph: Graph
    head: str | None
    parameters: Mapping[str, nn.Parameter]
    learning_rate_multipliers: Mapping[str, float]

    def loss(self, batch: TensorBatch) -> tuple[torch.Tensor, int]:
        """(summed loss, target count) of a batch."""
        if "attention_mask" in self.graph.inputs:
            logits = self.graph.module(batch.input_ids, batch.attention_mask)
            return classification_loss(logits, batch.labels)
        hidden = self.graph.module(batch.input_ids)
        if self.head is None:
            return _logits_loss(hidden, batch.labels)
        head = self.parameters.get(self.head)
        weight = attribute(self.graph.module, self.head) if head is None else head.to(hidden.dtype)
        return causal_lm_loss(hidden, weight, batch.labels)


def start(base: Base, candidate: Candidate, labels: int | None, seed: int) -> Start:
    """The starting tensors of a tenant; a classification tenant brings a head of `labels` rows."""
    chosen = method(candidate.method)
    adapted = select(base.targets, candidate.targets, chosen)
    scaling = 1.0
    if chosen.scaling and candidate.rank and candidate.alpha:
        scaling = chosen.scaling(candidate.rank, candidate.alpha)
    tensors = initialize(chosen, adapted, base.weight, candidate.rank, scaling, seed)
    if labels is not None:
        head = next(target for target in base.targets if target.name == CLASSIFIER)
        tensors |= initial_classifier(labels, head.in_features, seed)
    return Start(chosen, adapted, tensors, scaling)


def training_graph(
    base: Base, graph: Graph, candidate: Candidate, begin: Start, device: torch.device
) -> TrainingGraph:
    """Rewrite a copy of `graph`, captured in the candidate's compute dtype, for training."""
    headless = expose_hidden(graph.copied())
    current = headless.graph
    dtype = DTYPES[candidate.compute]
    fold = candidate.format != "nf4" and dtype == torch.float32
    adapted = insert_adapters(current, begin.owned(), fold_frozen=fold)
    parameters = dict(adapted.trainable)
    if f"{CLASSIFIER}.weight" in begin.tensors:
        parameters |= train_classifier(current, begin.tensors)
    if begin.method.trains_base:
        path = headless.weight
        head = cast(nn.Parameter, attribute(graph.module, path)) if path else None
        parameters |= train_base(current, head, path)
    if base.quantized:
        current = quantize_base(current, base.quantized, dtype)
    if candidate.checkpointing == "block":
        current = checkpoint_blocks(current)
    current.module.to(device)
    return TrainingGraph(current, headless.weight, parameters, adapted.learning_rate_multipliers)


def reference_graph(base: Base, begin: Start | None) -> Graph:
    """What an export must agree with: the fp32 graph with the tensors of `begin`, or the base."""
    current = base.graph.copied()
    if begin is not None:
        insert_adapters(current, begin.owned(), fold_frozen=False)
        if f"{CLASSIFIER}.weight" in begin.tensors:
            train_classifier(current, begin.tensors)
    if base.quantized:
        current = quantize_base(current, base.quantized, torch.float32)
    return current


def _logits_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    targets = labels[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((targets != IGNORED).sum())
