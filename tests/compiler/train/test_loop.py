import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from compiler.train import Silent, TensorBatch, train
from compiler.train.gradients import scale_gradients
from compiler.train.loop import total_steps
from planner.errors import DriftError, ParetuneError

SILENT = Silent()


def test_training_lowers_the_loss(toy: ModuleType, tmp_path: Path) -> None:
    trained = train(toy.toy_job(tmp_path), progress=SILENT)
    first, last = trained.history[0], trained.history[-1]
    assert [entry.step for entry in trained.history] == [4, 8, 12, 16, 20]
    assert last.validation_loss < first.validation_loss - 0.3
    assert trained.steps == 20
    assert not trained.stopped_early
    assert trained.peak_bytes > 0


def test_same_job_same_bytes(toy: ModuleType, tmp_path: Path) -> None:
    assert toy.trained_bytes(tmp_path / "one") == toy.trained_bytes(tmp_path / "two")


def test_killed_at_random_moments_resumes_to_the_same_bytes(
    toy: ModuleType, tmp_path: Path
) -> None:
    """Every step writes a checkpoint, so kills strike in the middle of writing one too."""
    done = subprocess.run(
        [sys.executable, toy.__file__, str(tmp_path), "6"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 6


def test_half_a_checkpoint_is_overlooked(toy: ModuleType, tmp_path: Path) -> None:
    """What a kill in the middle of writing leaves beside the last whole checkpoint."""
    whole = toy.trained_bytes(tmp_path)
    (tmp_path / "checkpoint.safetensors.partial").write_bytes(b"half")
    (tmp_path / "checkpoint.safetensors").unlink()
    assert toy.trained_bytes(tmp_path) == whole


def test_a_finished_run_is_not_trained_again(toy: ModuleType, tmp_path: Path) -> None:
    first = train(toy.toy_job(tmp_path), progress=SILENT)
    again = toy.toy_job(tmp_path)
    second = train(again, progress=SILENT)
    assert again.loss_fn.calls == 0
    assert second.history == first.history
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_another_jobs_checkpoint_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    train(toy.toy_job(tmp_path), progress=SILENT)
    changes = {
        "candidate": toy.CANDIDATE.model_copy(update={"learning_rate": 2e-2}),
        "train": toy.examples(31),
        "base_digest": "another base",
    }
    for name, value in changes.items():
        with pytest.raises(DriftError, match="belongs to another training run") as caught:
            train(toy.toy_job(tmp_path, **{name: value}), progress=SILENT)
        assert str(tmp_path) in str(caught.value.hint)


def test_a_damaged_checkpoint_is_named(toy: ModuleType, tmp_path: Path) -> None:
    train(toy.toy_job(tmp_path), progress=SILENT)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ParetuneError, match=f"cannot read '{path}'"):
        train(toy.toy_job(tmp_path), progress=SILENT)


def test_a_disk_that_refuses_is_named(toy: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ParetuneError, match=r"cannot write '.*/file/workspace/"):
        train(toy.toy_job(tmp_path / "file" / "workspace"), progress=SILENT)


def test_early_stopping_keeps_the_best_state(toy: ModuleType, tmp_path: Path) -> None:
    """The validation words count downwards: learning the training words makes them less likely."""
    training = toy.TRAINING.model_copy(update={"evaluate_every": 2, "patience": 2})
    job = toy.toy_job(tmp_path, training=training, validation=toy.examples(8, step=-1))
    trained = train(job, progress=SILENT)
    losses = {entry.step: entry.validation_loss for entry in trained.history}
    assert trained.stopped_early
    assert trained.best_step == min(losses, key=losses.__getitem__)
    assert trained.steps == trained.best_step + 4
    assert not torch.equal(trained.tensors["lora_B"], job.parameters["lora_B"])
    assert [path.name for path in tmp_path.glob("best-*")] == [
        f"best-{trained.best_step}.safetensors"
    ]


def test_without_validation_the_last_state_counts(toy: ModuleType, tmp_path: Path) -> None:
    job = toy.toy_job(tmp_path, validation=())
    trained = train(job, progress=SILENT)
    assert {entry.validation_loss for entry in trained.history} == {None}
    assert trained.best_step == trained.steps == 20
    assert torch.equal(trained.tensors["lora_B"], job.parameters["lora_B"])


def test_accumulation_equals_one_big_batch(toy: ModuleType, tmp_path: Path) -> None:
    """Eight examples of different lengths a step, in one batch or in four of two."""
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        batches = {"batch_size": size, "gradient_accumulation": accumulation}
        job = toy.toy_job(
            tmp_path / str(size),
            candidate=toy.CANDIDATE.model_copy(update=batches),
            training=toy.TRAINING.model_copy(update={"max_steps": 3}),
            train=toy.examples(8),
            learning_rate_multipliers={},
        )
        job = replace(job, loss_fn=toy.ToyLoss(job.parameters, keep=1.0))
        results.append(train(job, progress=SILENT))
    one, four = results
    assert one.history[0].train_loss == pytest.approx(four.history[0].train_loss, rel=1e-6)
    for name, tensor in one.tensors.items():
        # Sums in another order differ by 1e-6 of a gradient; AdamW moves each entry by at most
        # the learning rate, 1e-2, whatever the gradient's size.
        torch.testing.assert_close(four.tensors[name], tensor, rtol=0.0, atol=1e-2 * 1e-3)


def test_epochs_decide_the_steps_without_a_maximum(toy: ModuleType, tmp_path: Path) -> None:
    """32 examples in batches of 4, two batches a step: 4 steps an epoch."""
    training = toy.TRAINING.model_copy(update={"max_steps": None, "epochs": 2.5})
    assert total_steps(toy.toy_job(tmp_path, training=training)) == 10


def test_every_example_is_seen_once_an_epoch(toy: ModuleType, tmp_path: Path) -> None:
    seen: Counter[tuple[int, ...]] = Counter()
    training = toy.TRAINING.model_copy(update={"max_steps": None, "epochs": 2.0})
    job = toy.toy_job(tmp_path, training=training)
    toy_loss = job.loss_fn

    def recorded(batch: TensorBatch) -> tuple[torch.Tensor, int]:
        if torch.is_grad_enabled():
            lengths = batch.attention_mask.sum(1).tolist()
            seen.update(
                tuple(row[:length].tolist())
                for row, length in zip(batch.input_ids, lengths, strict=True)
            )
        return toy_loss(batch)

    train(replace(job, loss_fn=recorded), progress=SILENT)
    expected = Counter(tuple(example.input_ids.tolist()) for example in job.train)
    assert seen == expected + expected


def test_a_loss_that_is_not_finite_names_the_step(toy: ModuleType, tmp_path: Path) -> None:
    job = toy.toy_job(tmp_path)
    toy_loss = job.loss_fn

    def diverging(batch: TensorBatch) -> tuple[torch.Tensor, int]:
        loss, targets = toy_loss(batch)
        return (loss * float("inf") if toy_loss.calls > 4 else loss), targets

    with pytest.raises(ParetuneError, match="the loss became inf at step 3") as caught:
        train(replace(job, loss_fn=diverging), progress=SILENT)
    assert "lower the learning rate, which peaks at 0.01" in str(caught.value.hint)


def test_no_examples_is_an_error(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ParetuneError, match="no training examples"):
        train(toy.toy_job(tmp_path, train=()), progress=SILENT)


def test_gradients_are_means_clipped_to_the_total_norm() -> None:
    """Sums [6, 0] and [0, 8] over 2 targets: means of norm 5."""
    pair = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for max_norm, expected in ((10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])):
        pair[0].grad, pair[1].grad = torch.tensor([6.0, 0.0]), torch.tensor([0.0, 8.0])
        assert scale_gradients(pair, 2, max_norm) == pytest.approx(5.0)
        # The clip divides by norm + 1e-6.
        assert float(pair[0].grad[0]) == pytest.approx(expected[0], rel=1e-6)
        assert float(pair[1].grad[1]) == pytest.approx(expected[1], rel=1e-6)
