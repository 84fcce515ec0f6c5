"""train(job) -> Trained: steps, evaluations, checkpoints, and the best state at the end.

A step's gradient is that of the mean loss per target over all its micro-batches. Everything that
decides the next step is in the checkpoint, so a killed run resumes to the same bytes.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from statistics import median

import torch

from compiler import optimizers
from compiler.data import Batch, batch_count, batches
from compiler.train.gradients import scale_gradients
from compiler.train.job import Evaluation, Job, Trained, job_digest, on_device
from compiler.train.peak import peak_bytes, reset_peak
from compiler.train.progress import Reporter, Status
from compiler.train.reproducible import reproducible
from compiler.train.run import Run, best_state, resume, save, save_best
from compiler.train.schedule import factor, warmup_steps
from planner.errors import ParetuneError


def train(job: Job, *, progress: Reporter) -> Trained:
    """Train, or continue from the workspace's checkpoint; the parameters are left at the end.

    Raises ParetuneError when the loss or the gradient is not finite, DriftError when the
    workspace belongs to another job.
    """
    if not job.train:
        raise ParetuneError("there are no training examples")
    with reproducible(job.training.seed):
        reset_peak(job.device)
        run = _start(job, progress)
        clock = _Clock(resumed=run.progress.step > 0)
        _run_to_end(run, clock, progress)
    return Trained(
        tensors=best_state(run),
        history=tuple(run.progress.history),
        steps=run.progress.step,
        best_step=run.progress.best_step if job.validation else run.progress.step,
        stopped_early=run.progress.stopped_early,
        peak_bytes=peak_bytes(job.device),
        step_seconds=median(clock.step_seconds) if clock.step_seconds else None,
        seconds=time.perf_counter() - clock.started,
        resumed=clock.resumed,
    )


def total_steps(job: Job) -> int:
    """Optimizer steps: `max_steps` if the plan gives it, else what the epochs come to."""
    if job.training.max_steps is not None:
        return job.training.max_steps
    per_epoch = batch_count(len(job.train), job.candidate.batch_size)
    per_step = job.candidate.gradient_accumulation
    return max(1, math.ceil(job.training.epochs * per_epoch / per_step))


@dataclass
class _Clock:
    """Speed since this process began to train; a resumed run starts it again."""

    steps: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.perf_counter)
    resumed: bool = False
    step_seconds: list[float] = field(default_factory=list)

    def tokens_per_second(self) -> float:
        return self.tokens / (time.perf_counter() - self.started)

    def seconds_for(self, steps: int) -> float:
        return steps * (time.perf_counter() - self.started) / self.steps


def _start(job: Job, progress: Reporter) -> Run:
    digest = job_digest(job)
    optimizer = optimizers.build(
        job.candidate.optimizer,
        job.parameters,
        job.learning_rate_multipliers,
        job.training.weight_decay,
        progress.say,
    )
    run = resume(job, digest, optimizer)
    if run.progress.step:
        progress.say(f"continuing after step {run.progress.step} of {total_steps(job)}")
    return run


def _run_to_end(run: Run, clock: _Clock, progress: Reporter) -> None:
    job, state = run.job, run.progress
    total = total_steps(job)
    warmup = warmup_steps(total, job.training.warmup_fraction)
    stream = _micro_batches(run)
    while state.step < total and not state.stopped_early:
        rate = job.candidate.learning_rate * factor(state.step, total, warmup)
        optimizers.set_learning_rate(run.optimizer, rate)
        micro_batches = list(islice(stream, job.candidate.gradient_accumulation))
        begun = time.perf_counter()
        loss = take_step(run, micro_batches)
        clock.step_seconds.append(time.perf_counter() - begun)
        clock.steps += 1
        clock.tokens += sum(int(batch.attention_mask.sum()) for batch in micro_batches)
        last = state.step == total
        if last or state.step % job.training.evaluate_every == 0:
            _evaluate(run, clock.tokens_per_second())
        progress.step(_status(run, clock, total, loss))
        if last or state.stopped_early or state.step % job.training.checkpoint_every == 0:
            save(run)


def _micro_batches(run: Run) -> Iterator[Batch]:
    """Batches without end, from where the run stands; epochs follow each other within a step."""
    job, state = run.job, run.progress
    for epoch in count(state.epoch):
        done = state.batch_in_epoch if epoch == state.epoch else 0
        state.epoch, state.batch_in_epoch = epoch, done
        epoch_batches = batches(
            job.train,
            job.candidate.batch_size,
            seed=job.training.seed,
            epoch=epoch,
            pad_id=job.pad_id,
        )
        for batch in islice(epoch_batches, done, None):
            state.batch_in_epoch += 1
            yield batch


def take_step(run: Run, micro_batches: Sequence[Batch]) -> float:
    """One update; the mean loss per target before it."""
    job, state = run.job, run.progress
    run.optimizer.zero_grad(set_to_none=True)
    loss_sum, targets = 0.0, 0
    for batch in micro_batches:
        loss, labelled = job.loss_fn(on_device(batch, job.device))
        loss_sum, targets = loss_sum + float(loss.detach()), targets + labelled
        if labelled:
            loss.backward()  # type: ignore[no-untyped-call]
    state.step += 1
    _check_finite("loss", loss_sum, run)
    if targets:
        limit = job.training.max_gradient_norm
        norm = scale_gradients(job.parameters.values(), targets, limit)
        _check_finite("gradient norm", norm, run)
        run.optimizer.step()
    # Freed here rather than at the next step, so that no evaluation carries them.
    run.optimizer.zero_grad(set_to_none=True)
    state.loss_sum += loss_sum
    state.targets += targets
    return loss_sum / max(1, targets)


def _check_finite(what: str, value: float, run: Run) -> None:
    if not math.isfinite(value):
        rate = run.job.candidate.learning_rate
        raise ParetuneError(
            f"the {what} became {value} at step {run.progress.step}",
            hint=f"lower the learning rate, which peaks at {rate:g}, or lengthen the warm-up",
        )


def _evaluate(run: Run, tokens_per_second: float) -> None:
    """Add to the history; keep the state if it is the best so far, else count towards stopping."""
    state, training = run.progress, run.job.training
    validation = _validation_loss(run)
    train_loss = state.loss_sum / max(1, state.targets)
    state.history.append(Evaluation(state.step, train_loss, validation, tokens_per_second))
    state.loss_sum, state.targets = 0.0, 0
    if validation is None:
        return
    if state.best_loss is None or validation < state.best_loss:
        state.best_loss, state.best_step, state.evaluations_without_gain = validation, state.step, 0
        save_best(run)
    else:
        state.evaluations_without_gain += 1
        state.stopped_early = state.evaluations_without_gain >= training.patience


def _validation_loss(run: Run) -> float | None:
    """Mean loss per target over the validation examples, or None when there are no targets."""
    job = run.job
    loss_sum, targets = 0.0, 0
    with torch.no_grad():
        for batch in batches(
            job.validation, job.candidate.batch_size, seed=0, epoch=0, pad_id=job.pad_id
        ):
            loss, labelled = job.loss_fn(on_device(batch, job.device))
            loss_sum, targets = loss_sum + float(loss), targets + labelled
    _check_finite("validation loss", loss_sum, run)
    return loss_sum / targets if targets else None


def _status(run: Run, clock: _Clock, total: int, loss: float) -> Status:
    history = run.progress.history
    return Status(
        step=run.progress.step,
        total_steps=total,
        loss=loss,
        validation_loss=history[-1].validation_loss if history else None,
        tokens_per_second=clock.tokens_per_second(),
        seconds_left=clock.seconds_for(total - run.progress.step),
    )
