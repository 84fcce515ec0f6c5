"""Checkpoints: tensors and JSON in one safetensors file, written aside and put in place by rename.

A kill at any moment leaves the previous checkpoint or the new one, whole. The file carries the
digest of the job that wrote it, so that no other job resumes from it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from compiler.artifact import sync
from planner.errors import DriftError, ParetuneError

FILE = "checkpoint.safetensors"
PENDING = ".partial"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """`record` is JSON; `tensors` hold everything else that the next step depends on."""

    record: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


def write_checkpoint(folder: Path, job_digest: str, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint; raises ParetuneError when the disk refuses."""
    record = {"version": SCHEMA_VERSION, "job": job_digest, **checkpoint.record}
    write_tensors(folder / FILE, checkpoint.tensors, {"paretune": json.dumps(record)})


def read_checkpoint(folder: Path, job_digest: str) -> Checkpoint | None:
    """The folder's checkpoint, or None; raises DriftError when another job wrote it."""
    path = folder / FILE
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path)
    record = json.loads(metadata.get("paretune", "{}"))
    if record.get("version") != SCHEMA_VERSION or record.get("job") != job_digest:
        raise DriftError(
            f"'{path}' belongs to another training run: its job digest is "
            f"{str(record.get('job'))[:12]}, this job's is {job_digest[:12]}",
            hint="the plan, the data, the seed or the model changed; "
            f"delete '{folder}' to train from the start",
        )
    return Checkpoint(record, tensors)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file that is either absent, old or whole, even after a power cut."""
    pending = path.with_name(path.name + PENDING)
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: tensor.contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(rows, pending, metadata=dict(metadata or {}))
        sync(pending)
        pending.replace(path)
        sync(path.parent)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata; raises ParetuneError when the file is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            return tensors, dict(stream.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise ParetuneError(
            f"cannot read '{path}': {error}",
            hint=f"delete '{path.parent}' to train from the start",
        ) from error


def fingerprint(parts: Mapping[str, object], tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the parts' canonical JSON and the bytes of every tensor, by name."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().to("cpu").reshape(-1).contiguous().numpy()
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(flat.data)
    return digest.hexdigest()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise ParetuneError(
            f"cannot write '{path}': {error}",
            hint="free disk space or choose another folder; the last whole checkpoint is kept",
        ) from error
