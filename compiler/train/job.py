"""What goes into training one tenant, and what comes out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from compiler.data import Batch, Example
from compiler.train.checkpoint import fingerprint
from planner.plan import Candidate, Training


@dataclass(frozen=True, eq=False)
class TensorBatch:
    """A data batch on the training device; all int64 [batch, tokens], class labels [batch]."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor


LossFunction = Callable[[TensorBatch], tuple[torch.Tensor, int]]
"""The batch's summed loss, fp32 [], and the number of targets in the sum."""


@dataclass(frozen=True, eq=False)
class Job:
    """One tenant's training.

    `parameters` are the trainable fp32 masters and are updated in place; compute precision is the
    business of `loss_fn`. `workspace` keeps the checkpoints. `base_digest` stands for everything
    else the loss depends on: a checkpoint of another base is refused.
    """

    loss_fn: LossFunction
    parameters: Mapping[str, torch.nn.Parameter]
    candidate: Candidate
    training: Training
    train: Sequence[Example]
    validation: Sequence[Example]
    pad_id: int
    workspace: Path
    learning_rate_multipliers: Mapping[str, float] = field(default_factory=dict)
    base_digest: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Evaluation:
    """Mean loss per target: of training since the last evaluation, and of the validation set."""

    step: int
    train_loss: float
    validation_loss: float | None
    tokens_per_second: float


@dataclass(frozen=True, eq=False)
class Trained:
    """`tensors` are the state of `best_step`, fp32 on the CPU; `peak_bytes` counts this run.

    `step_seconds` is the median of the steps taken by this process, None when it took none, and
    `seconds` what it trained and evaluated altogether.
    """

    tensors: Mapping[str, torch.Tensor]
    history: tuple[Evaluation, ...]
    steps: int
    best_step: int
    stopped_early: bool
    peak_bytes: int
    step_seconds: float | None = None
    seconds: float = 0.0
    resumed: bool = False


def job_digest(job: Job) -> str:
    """sha256 of all that decides the result: settings, data, starting values and the base."""
    parts = {
        "candidate": job.candidate.model_dump(),
        "training": job.training.model_dump(),
        "learning_rate_multipliers": dict(job.learning_rate_multipliers),
        "base": job.base_digest,
        "pad_id": job.pad_id,
        "device": job.device.type,
    }
    data = _flat("train", job.train) | _flat("validation", job.validation)
    return fingerprint(parts, {**job.parameters, **data})


def _flat(name: str, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """All the examples' ids, labels and lengths, end to end."""
    empty = np.zeros(0, np.int64)
    ids = [example.input_ids for example in examples]
    labels = [np.atleast_1d(example.labels) for example in examples]
    return {
        f"{name}/input_ids": torch.from_numpy(np.concatenate([empty, *ids])),
        f"{name}/labels": torch.from_numpy(np.concatenate([empty, *labels])),
        f"{name}/lengths": torch.tensor([len(row) for row in ids], dtype=torch.int64),
    }


def on_device(batch: Batch, device: torch.device) -> TensorBatch:
    return TensorBatch(
        *(
            torch.from_numpy(array).to(device)
            for array in (batch.input_ids, batch.labels, batch.attention_mask)
        )
    )
