"""A toy job: guess the next of 50 words from a frozen embedding and a trained low-rank pair.

As a script: `toy_job.py FOLDER KILLS` trains once undisturbed and then in processes killed with
SIGKILL at random moments, until that many kills have struck, and compares the adapters' bytes.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from compiler.data import Example
from compiler.train import Job, Silent, TensorBatch, causal_lm_loss, train
from planner.plan import Candidate, Training

VOCABULARY, WIDTH, RANK = 50, 16, 4
KILLS_PER_RUN = 3

CANDIDATE = Candidate(
    method="lora_plus",
    rank=RANK,
    alpha=RANK,
    targets=("all-linear",),
    format="fp32",
    compute="fp32",
    batch_size=4,
    gradient_accumulation=2,
    sequence_length=64,
    learning_rate=1e-2,
)
TRAINING = Training(
    max_steps=20, evaluate_every=4, checkpoint_every=5, patience=20, weight_decay=0.1
)


class ToyLoss:
    """The loss of a fixed frozen base with the job's parameters; `calls` counts its batches.

    Dropout is no part of any method here, but the random state must survive a kill.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], keep: float = 0.9) -> None:
        generator = torch.Generator().manual_seed(1)
        self.embedding = torch.randn(VOCABULARY, WIDTH, generator=generator)
        self.head = 0.3 * torch.randn(VOCABULARY, WIDTH, generator=generator)
        self.parameters = parameters
        self.keep = keep
        self.calls = 0

    def __call__(self, batch: TensorBatch) -> tuple[torch.Tensor, int]:
        self.calls += 1
        hidden = self.embedding[batch.input_ids]
        latent = hidden @ self.parameters["lora_A"].T
        kept = torch.rand(latent.shape) < self.keep
        hidden = hidden + (latent * kept) @ self.parameters["lora_B"].T
        return causal_lm_loss(hidden, self.head, batch.labels)


def examples(number: int, step: int = 1) -> tuple[Example, ...]:
    """Words that count upwards by `step`, of different lengths."""
    random_state = np.random.default_rng(number)
    found = []
    for group in range(number):
        length = int(random_state.integers(5, 30))
        ids = (int(random_state.integers(VOCABULARY)) + step * np.arange(length)) % VOCABULARY
        found.append(Example(ids.astype(np.int64), ids.astype(np.int64), group))
    return tuple(found)


def toy_job(workspace: Path, **changes: Any) -> Job:  # noqa: ANN401  any field of Job
    generator = torch.Generator().manual_seed(2)
    parameters = {
        "lora_A": torch.nn.Parameter(0.3 * torch.randn(RANK, WIDTH, generator=generator)),
        "lora_B": torch.nn.Parameter(torch.zeros(WIDTH, RANK)),
    }
    settings: dict[str, Any] = {
        "loss_fn": ToyLoss(parameters),
        "parameters": parameters,
        "candidate": CANDIDATE,
        "training": TRAINING,
        "train": examples(32),
        "validation": examples(8),
        "pad_id": 0,
        "workspace": workspace,
        "learning_rate_multipliers": {"lora_B": 16.0},
    }
    return Job(**(settings | changes))


def trained_bytes(workspace: Path, checkpoint_every: int = 5) -> bytes:
    training = TRAINING.model_copy(update={"checkpoint_every": checkpoint_every})
    tensors = train(toy_job(workspace, training=training), progress=Silent()).tensors
    return safetensors.torch.save(dict(tensors))


def run_in_child(workspace: Path, seconds: float | None) -> bool:
    """Train in a child process, killed after that many seconds; True when it came to the end."""
    child = os.fork()
    if child == 0:
        (workspace / "adapter").write_bytes(trained_bytes(workspace, 1))
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def survive_kills(folder: Path, kills: int) -> None:
    random.seed(0)
    torch.set_num_threads(1)
    # The first run also pays for what torch loads on use; the children inherit it.
    expected = trained_bytes(folder / "undisturbed")
    (folder / "timed").mkdir()
    began = time.perf_counter()
    assert run_in_child(folder / "timed", None)
    seconds = time.perf_counter() - began
    struck = runs = 0
    while struck < kills:
        workspace = folder / f"disturbed-{runs}"
        workspace.mkdir()
        for _ in range(KILLS_PER_RUN):
            struck += not run_in_child(workspace, seconds * random.uniform(0.1, 0.6))
        assert run_in_child(workspace, None)
        assert (workspace / "adapter").read_bytes() == expected, f"run {runs} differs"
        runs += 1
    sys.stdout.write(f"{struck} kills in {runs} runs of {seconds:.2f} s\n")


if __name__ == "__main__":
    survive_kills(Path(sys.argv[1]), int(sys.argv[2]))
