"""Base graph + plan -> the graph that trains one tenant, its parameters and its loss."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from compiler import nf4
from compiler.adapter import Adapter, classifier_site
from compiler.base_model import DTYPES, Base, select
from compiler.data import IGNORED
from compiler.graph import Graph, attribute, rebuilt
from compiler.initializers import initialize
from compiler.passes.checkpoint_blocks import checkpoint_blocks
from compiler.passes.expose_hidden import expose_hidden
from compiler.passes.insert_adapters import Tensors, insert_adapters
from compiler.passes.quantize_base import quantize_base
from compiler.passes.train_base import train_base
from compiler.passes.train_classifier import initial_classifier, train_classifier
from compiler.quantized import QuantizedWeight
from compiler.train import TensorBatch, causal_lm_loss, classification_loss
from planner.errors import IncompatibleError
from planner.method import Target, method
from planner.plan import Candidate


@dataclass(frozen=True)
class Start:
    """The tensors of one tenant, at the start of training or after it, and what they apply to.

    `owned` are the method's; `head` holds "<site>.weight" and "<site>.bias" of its own classifier.
    """

    owned: Tensors
    head: Mapping[str, torch.Tensor]
    site: str | None

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {**self.owned.values, **self.head}


@dataclass(frozen=True)
class TrainingGraph:
    """`parameters` are the trained fp32 masters by adapter key; `loss` sums over a batch.

    `head` [vocabulary, hidden] is what the graph was cut before, or None.
    """

    graph: Graph
    head: torch.Tensor | None
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
        return causal_lm_loss(hidden, self.head.to(hidden.dtype), batch.labels)


def start(base: Base, candidate: Candidate, labels: int | None, seed: int) -> Start:
    """The starting tensors of a tenant; a classification tenant brings a head of `labels` rows."""
    chosen = method(candidate.method)
    adapted = select(base.targets, candidate.targets, chosen)
    scaling = 1.0
    if chosen.scaling and candidate.rank and candidate.alpha:
        scaling = chosen.scaling(candidate.rank, candidate.alpha)
    values = initialize(chosen, adapted, base.weight, candidate.rank, scaling, seed)
    owned = Tensors(chosen, adapted, values, {target.name: scaling for target in adapted})
    if labels is None:
        return Start(owned, {}, None)
    site = classifier(base)
    return Start(owned, initial_classifier(site.name, labels, site.in_features, seed), site.name)


def of_adapter(adapter: Adapter) -> Start:
    """The trained tensors of an adapter, in the form that a graph is rewritten with."""
    site = classifier_site(adapter)
    values = {name: torch.from_numpy(tensor) for name, tensor in adapter.tensors.items()}
    head = {name: values.pop(name) for name in (f"{site}.weight", f"{site}.bias") if name in values}
    owned = Tensors(method(adapter.method), adapter.targets, values, adapter.scalings)
    return Start(owned, head, site)


def classifier(base: Base) -> Target:
    """The linear that labels are put on; raises IncompatibleError when there is none."""
    for target in base.targets:
        if target.role == "classifier":
            return target
    raise IncompatibleError("the model has no classifier to put labels on")


def training_graph(
    base: Base, graph: Graph, candidate: Candidate, begin: Start, device: torch.device
) -> TrainingGraph:
    """Rewrite a copy of `graph`, captured in the candidate's compute dtype, for training."""
    headless = expose_hidden(graph.copied())
    current = headless.graph
    dtype = DTYPES[candidate.compute]
    fold = candidate.format != "nf4" and dtype == torch.float32
    adapted = insert_adapters(current, begin.owned, fold_frozen=fold)
    parameters = dict(adapted.trainable)
    if begin.site is not None:
        parameters |= train_classifier(current, begin.site, begin.head)
    path = headless.weight
    head = None if path is None else attribute(graph.module, path)
    if begin.owned.method.trains_base:
        parameters |= train_base(current, head, path)
        head = None if path is None else parameters[path]
    if base.quantized:
        current = quantize_base(current, base.quantized, dtype)
    if candidate.checkpointing == "block":
        current = checkpoint_blocks(current)
    placement = Placement(device)
    current = on_device(current, placement)
    head = None if head is None else placement.placed(head)
    return TrainingGraph(current, head, parameters, adapted.learning_rate_multipliers)


@dataclass(frozen=True)
class Placement:
    """Tensors on a device: a frozen one is copied, once however often it is read, as a tied head
    is; a trained one moves itself, so that whoever holds it still holds the trained one."""

    device: torch.device
    copies: dict[int, torch.Tensor] = field(default_factory=dict)

    def placed(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.requires_grad:
            tensor.data = tensor.data.to(self.device)
            return tensor
        if id(tensor) not in self.copies:
            self.copies[id(tensor)] = tensor.to(self.device)
        return self.copies[id(tensor)]


def on_device(graph: Graph, placement: Placement) -> Graph:
    """The graph with its own copy of every frozen tensor on the device.

    The base model's graph shares its tensors with every tenant's and stays where it is; what this
    graph no longer reads, such as a dense weight that was quantised, is not copied.
    """
    if placement.device.type == "cpu":
        return graph
    current = graph.copied()
    for module in current.module.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            moved = placement.placed(parameter)
            if not parameter.requires_grad:
                moved = nn.Parameter(moved, requires_grad=False)
            setattr(module, name, moved)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, placement.placed(buffer), persistent=False)
    return current


def reference_graph(base: Base, begin: Start | None) -> Graph:
    """What an export must agree with: the fp32 graph with the tensors of `begin`, or the base."""
    current = base.graph.copied()
    if begin is not None:
        insert_adapters(current, begin.owned, fold_frozen=False)
        if begin.site is not None:
            train_classifier(current, begin.site, begin.head)
    if base.quantized:
        current = quantize_base(current, base.quantized, torch.float32)
    return current


def _logits_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    targets = labels[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((targets != IGNORED).sum())


def graph_with(base: Base, weights: Mapping[str, torch.Tensor | QuantizedWeight]) -> Graph:
    """The fp32 graph over other weights, by parameter path, as an export stores them."""
    current = base.graph.copied()
    for node in current.module.graph.nodes:
        if node.op == "get_attr" and str(node.target) in weights:
            name = f"other_{str(node.target).replace('.', '/')}"
            current.module.register_buffer(name, _dense(weights[str(node.target)]))
            node.target = name
    return rebuilt(current)


def _dense(weight: torch.Tensor | QuantizedWeight) -> torch.Tensor:
    return nf4.dequantize(weight) if isinstance(weight, QuantizedWeight) else weight.float()
