"""One optimizer step of the compiler's own loop, watched: training graph -> live bytes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from compiler import optimizers
from compiler.data import IGNORED, Batch
from compiler.passes.insert_adapters import ADAPTERS
from compiler.simulate.gpu_kernels import AdamW8bit
from compiler.simulate.live import LiveStorages, Segment
from compiler.train import Job, TensorBatch
from compiler.train.loop import take_step
from compiler.train.run import Progress, Run
from compiler.training_graph import TrainingGraph
from planner.method import method
from planner.plan import Candidate, Training

CPU = torch.device("cpu")
CUDA_BLOCK_BYTES = 512
"""CUDA's caching allocator hands out multiples of this, and its statistics count them."""
ENGINE = torch.autograd.Variable._execution_engine
MICRO_BATCHES = 2
"""From the second one on, the gradients are alive: a third is like the second."""


@dataclass(frozen=True)
class Watched:
    """What is stepped: a training graph, the candidate, and how it is run.

    `loss` "full" holds all logits, as frameworks without a fused loss do. `gpu` counts in CUDA's
    blocks and with its optimizers.
    """

    training: TrainingGraph
    candidate: Candidate
    settings: Training
    gpu: bool
    loss: str = "chunked"


def watch(watched: Watched, batch: Batch, mode: FakeTensorMode | None = None) -> list[Segment]:
    """Take one step from a settled optimizer; with `mode` on fake tensors, else on real ones."""
    live = LiveStorages(CUDA_BLOCK_BYTES if watched.gpu else 1)
    with _evaluated_by(mode, batch):
        run = Run(_job(watched, live, mode), "", _settled_optimizer(watched), Progress())
        _hold(watched, run.optimizer, live)
        with _gradients_marked(watched.training, live), live:
            take_step(run, [batch] * _micro_batches(watched.candidate))
    return live.segments


def _micro_batches(candidate: Candidate) -> int:
    return min(candidate.gradient_accumulation, MICRO_BATCHES)


def example_batch(candidate: Candidate, *, causal: bool) -> Batch:
    """A full micro-batch: every row as long as the plan allows, every token a target."""
    shape = (candidate.batch_size, candidate.sequence_length)
    labels = shape if causal else shape[:1]
    return Batch(np.zeros(shape, np.int64), np.zeros(labels, np.int64), np.ones(shape, np.int64))


class _Answers(TorchDispatchMode):
    """Answers what depends on data: how many labels are targets, and that sums are finite."""

    def __init__(self, labelled: int) -> None:
        super().__init__()
        self._labelled = labelled

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0
        if func is torch.ops.aten.nonzero.default:
            return torch.empty(self._labelled, 1, dtype=torch.int64)
        return func(*args, **(kwargs or {}))


@contextmanager
def _evaluated_by(mode: FakeTensorMode | None, batch: Batch) -> Iterator[None]:
    if mode is None:
        yield
        return
    with mode, _Answers(int((batch.labels[:, 1:] != IGNORED).sum()) if batch.labels.ndim > 1 else 0):
        yield


def _job(watched: Watched, live: LiveStorages, mode: FakeTensorMode | None) -> Job:
    return Job(
        loss_fn=_phased_loss(watched, live, mode),
        parameters=watched.training.parameters,
        candidate=watched.candidate,
        training=watched.settings,
        train=(),
        validation=(),
        pad_id=0,
        workspace=Path(),
        device=CPU,
    )


def _phased_loss(
    watched: Watched, live: LiveStorages, mode: FakeTensorMode | None
) -> Callable[[TensorBatch], tuple[torch.Tensor, int]]:
    """The training graph's loss, telling where the forward pass and the loss end."""
    training, taken = watched.training, 0
    last = _micro_batches(watched.candidate)
    training.graph.module.register_forward_hook(lambda *_: live.enter("loss", taken))

    def backward_ended() -> None:
        if taken == last:
            live.enter("optimizer", taken)

    def loss_fn(batch: TensorBatch) -> tuple[torch.Tensor, int]:
        nonlocal taken
        taken += 1
        live.enter("forward", taken)
        tensors = [batch.input_ids, batch.labels, batch.attention_mask]
        if mode is not None:
            tensors = [mode.from_tensor(tensor) for tensor in tensors]
        live.hold(tensors, "activations")
        loss = _full_loss if watched.loss == "full" else TrainingGraph.loss
        summed, labelled = loss(training, TensorBatch(*tensors))
        summed.register_hook(lambda _: ENGINE.queue_callback(backward_ended))
        live.enter("backward", taken)
        return summed, labelled

    return loss_fn


def _full_loss(training: TrainingGraph, batch: TensorBatch) -> tuple[torch.Tensor, int]:
    """The loss over all logits at once, in fp32, as transformers computes it."""
    if training.head is None:
        return training.loss(batch)
    hidden = training.graph.module(batch.input_ids)
    logits = functional.linear(hidden, training.head.to(hidden.dtype)).float()
    targets = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
    loss = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss, targets.numel()


def _settled_optimizer(watched: Watched) -> torch.optim.Optimizer:
    """The optimizer with its states allocated, as every step but the first finds it."""
    training, name = watched.training, watched.candidate.optimizer
    multipliers, decay = training.learning_rate_multipliers, watched.settings.weight_decay
    if watched.gpu and name == "paged_adamw8bit":
        groups = optimizers.groups(training.parameters, multipliers, decay)
        optimizer: torch.optim.Optimizer = AdamW8bit(groups)
    else:
        optimizer = optimizers.build(name, training.parameters, multipliers, decay, lambda _: None)
    for parameter in training.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def _hold(watched: Watched, optimizer: torch.optim.Optimizer, live: LiveStorages) -> None:
    """Count what is there before the step: what the graph reads, the head, and the states."""
    training = watched.training
    module = training.graph.copied().module
    trains_base = method(watched.candidate.method).trains_base
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        own = ADAPTERS in name.split(".") and isinstance(tensor, torch.nn.Parameter)
        live.hold([tensor], "adapters" if own else "weights")
    if training.head is not None:
        live.hold([training.head], "weights")
    live.hold(training.parameters.values(), "weights" if trains_base else "adapters")
    for states in optimizer.state.values():
        live.hold((s for s in states.values() if isinstance(s, torch.Tensor)), "optimizer")


@contextmanager
def _gradients_marked(training: TrainingGraph, live: LiveStorages) -> Iterator[None]:
    """Count what lands in a parameter's `grad` as a gradient, from then on."""

    def mark(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            live.hold([parameter.grad], "gradients")

    handles = [p.register_post_accumulate_grad_hook(mark) for p in training.parameters.values()]
    yield
    for handle in handles:
        handle.remove()
