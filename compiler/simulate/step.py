"""One optimizer step of the compiler's own loop, watched: training graph -> live bytes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from compiler import optimizers
from compiler.data import IGNORED, Batch
from compiler.passes.insert_adapters import ADAPTERS
from compiler.simulate.kernels import Stateful, adamw8bit_states, adamw_states
from compiler.simulate.live import LiveStorages, Segment
from compiler.train import Job, TensorBatch
from compiler.train.loop import take_step
from compiler.train.run import Progress, Run
from compiler.training_graph import TrainingGraph
from planner.method import method
from planner.plan import Candidate, Training

CUDA_BLOCK_BYTES = 512
"""CUDA's caching allocator hands out multiples of this, and its statistics count them."""
ENGINE = torch.autograd.Variable._execution_engine
MICRO_BATCHES = 2
"""From the second one on, the gradients are alive: a third is like the second."""


@dataclass(frozen=True)
class Watched:
    """What is stepped: a training graph, the candidate, and how it is run.

    `device` "meta" computes shapes alone. `gpu` counts in CUDA's blocks and with its optimizers;
    `loss` "full" holds all logits, as frameworks without a fused loss do.
    """

    training: TrainingGraph
    candidate: Candidate
    settings: Training
    device: torch.device
    gpu: bool
    loss: str = "chunked"


def watch(watched: Watched, batch: Batch) -> list[Segment]:
    """Take one step from a settled optimizer."""
    live = LiveStorages(CUDA_BLOCK_BYTES if watched.gpu else 1)
    run = Run(_job(watched, live), "", _settled_optimizer(watched), Progress())
    _hold(watched, run.optimizer, live)
    answers = _Answers(batch) if watched.device.type == "meta" else nullcontext()
    with answers, _gradients_marked(watched.training, live), live:
        take_step(run, [batch] * _micro_batches(watched.candidate))
    return live.segments


def _micro_batches(candidate: Candidate) -> int:
    return min(candidate.gradient_accumulation, MICRO_BATCHES)


def example_batch(candidate: Candidate, *, causal: bool) -> Batch:
    """A full micro-batch: every row as long as the plan allows, every token a target."""
    shape = (candidate.batch_size, candidate.sequence_length)
    labels = shape if causal else shape[:1]
    return Batch(np.zeros(shape, np.int64), np.zeros(labels, np.int64), np.ones(shape, np.int64))


class _Answers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers what depends on data: how many labels are targets, and that sums are finite."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._targets = int((batch.labels[..., 1:] != IGNORED).sum())

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
            return torch.empty(self._targets, 1, dtype=torch.int64, device="meta")
        return func(*args, **(kwargs or {}))


def _job(watched: Watched, live: LiveStorages) -> Job:
    return Job(
        loss_fn=_phased_loss(watched, live),
        parameters=watched.training.parameters,
        candidate=watched.candidate,
        training=watched.settings,
        train=(),
        validation=(),
        pad_id=0,
        workspace=Path(),
        device=watched.device,
    )


def _phased_loss(
    watched: Watched, live: LiveStorages
) -> Callable[[TensorBatch], tuple[torch.Tensor, int]]:
    """The training graph's loss, telling where each phase begins."""
    training, taken = watched.training, 0
    last = _micro_batches(watched.candidate)

    def backward_ended() -> None:
        if taken == last:
            live.enter("optimizer", taken)

    def loss_fn(batch: TensorBatch) -> tuple[torch.Tensor, int]:
        nonlocal taken
        taken += 1
        live.enter("forward", taken)
        live.hold((batch.input_ids, batch.labels, batch.attention_mask), "activations")
        loss = _full_loss if watched.loss == "full" else TrainingGraph.loss
        module = training.graph.module
        with module.register_forward_hook(lambda *_: live.enter("loss", taken)):
            summed, labelled = loss(training, batch)
        summed.register_hook(  # type: ignore[no-untyped-call]
            lambda _: ENGINE.queue_callback(backward_ended)
        )
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
    optimizer: torch.optim.Optimizer
    if watched.device.type == "meta":
        groups = optimizers.groups(training.parameters, multipliers, decay)
        paged = watched.gpu and name == "paged_adamw8bit"
        optimizer = Stateful(groups, adamw8bit_states if paged else adamw_states)
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

    handles = [
        parameter.register_post_accumulate_grad_hook(mark)  # type: ignore[no-untyped-call]
        for parameter in training.parameters.values()
    ]
    yield
    for handle in handles:
        handle.remove()
