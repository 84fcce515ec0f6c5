"""A run between two steps: what of it is not a tensor, and how all of it is saved and found."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch

from compiler.optimizers import export_state, import_state
from compiler.train.checkpoint import (
    Checkpoint,
    read_checkpoint,
    read_tensors,
    write_checkpoint,
    write_tensors,
)
from compiler.train.job import Evaluation, Job


@dataclass
class Progress:
    """How far a run has come; JSON, so that a resumed run continues from the same numbers."""

    step: int = 0
    epoch: int = 0
    batch_in_epoch: int = 0
    loss_sum: float = 0.0
    targets: int = 0
    best_step: int = 0
    best_loss: float | None = None
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    history: list[Evaluation] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    job: Job
    digest: str
    optimizer: torch.optim.Optimizer
    progress: Progress


def save(run: Run) -> None:
    """Write the checkpoint, then drop the best states that it no longer names."""
    parameters = run.job.parameters
    tensors = {f"parameter/{name}": value.detach() for name, value in parameters.items()}
    for key, value in export_state(run.optimizer, parameters).items():
        tensors[f"optimizer/{key}"] = value
    tensors |= _random_states(run.job.device)
    write_checkpoint(run.job.workspace, run.digest, Checkpoint(asdict(run.progress), tensors))
    for path in run.job.workspace.glob("best-*.safetensors"):
        if path.name != _best_name(run.progress.best_step):
            path.unlink()


def resume(job: Job, digest: str, optimizer: torch.optim.Optimizer) -> Run:
    """The run that the job's checkpoint describes, or a new one; raises DriftError."""
    found = read_checkpoint(job.workspace, digest)
    if found is None:
        return Run(job, digest, optimizer, Progress())
    with torch.no_grad():
        for name, parameter in job.parameters.items():
            parameter.copy_(found.tensors[f"parameter/{name}"])
    state = (
        (key.removeprefix("optimizer/"), value)
        for key, value in found.tensors.items()
        if key.startswith("optimizer/")
    )
    import_state(optimizer, job.parameters, state)
    _restore_random_states(found.tensors, job.device)
    record = {name: found.record[name] for name in asdict(Progress())}
    record["history"] = [Evaluation(**entry) for entry in record["history"]]
    return Run(job, digest, optimizer, Progress(**record))


def save_best(run: Run) -> None:
    """Keep the current state on disk, where it costs no memory; the next checkpoint names it."""
    tensors = {name: value.detach() for name, value in run.job.parameters.items()}
    write_tensors(run.job.workspace / _best_name(run.progress.best_step), tensors)


def best_state(run: Run) -> dict[str, torch.Tensor]:
    """The tensors of the best evaluation, or the current ones if nothing was validated."""
    if run.progress.best_loss is not None:
        path = run.job.workspace / _best_name(run.progress.best_step)
        tensors, _ = read_tensors(path)
        return {name: tensors[name] for name in run.job.parameters}
    return {
        name: value.detach().to("cpu", torch.float32, copy=True)
        for name, value in run.job.parameters.items()
    }


def _best_name(step: int) -> str:
    return f"best-{step}.safetensors"


def _random_states(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"random/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random/cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random_states(tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(tensors["random/cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random/cuda"], device)
