"""Where a build keeps what it has finished, so that a killed one goes on where it was.

The folder lies beside the artifact and is bound to one build by a digest of everything that
decides its result; a build with other inputs does not continue it.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import compiler
import planner
from compiler.artifact import beside, sync, write_durably
from planner.errors import DriftError, ParetuneError

IDENTITY = "identity.json"


@dataclass(frozen=True)
class Workspace:
    """`folder` holds training/<tenant>/ and, when it is trained, adapters/<tenant>.safetensors."""

    folder: Path

    def training(self, tenant: str) -> Path:
        return self.folder / "training" / tenant

    def adapter(self, tenant: str) -> Path:
        return self.folder / "adapters" / f"{tenant}.safetensors"

    def remove(self) -> None:
        """Out of sight in one step: a half-removed workspace must not pass for a whole one."""
        gone = self.folder.with_name(f"{self.folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        self.folder.rename(gone)
        shutil.rmtree(gone)


def open_workspace(out: Path, identity: Mapping[str, object], *, restart: bool) -> Workspace:
    """The workspace of the build that makes `out`.

    Raises DriftError when one of another build is there, unless `restart` discards it.
    """
    folder = workspace_folder(out)
    workspace, path = Workspace(folder), folder / IDENTITY
    text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
    if folder.exists() and (restart or not path.is_file()):
        workspace.remove()
    if path.is_file():
        changed = changes(out, identity)
        if changed:
            raise DriftError(
                f"an unfinished build of '{out}' has other inputs: {', '.join(changed)} changed",
                hint="give the same inputs to go on with it, or --restart to discard it",
            )
        return workspace
    (folder / "adapters").mkdir(parents=True)
    aside = path.with_suffix(".part")
    write_durably(aside, text.encode())
    aside.replace(path)
    sync(folder)
    return workspace


@contextmanager
def exclusively(workspace: Workspace) -> Iterator[None]:
    """Raises ParetuneError while another process builds in the same workspace."""
    handle = os.open(workspace.folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ParetuneError(
            f"another process is building in '{workspace.folder}'",
            hint="wait for it, or give another --out",
        ) from error
    finally:
        os.close(handle)


def workspace_folder(out: Path) -> Path:
    return beside(out, "building")


def changes(out: Path, identity: Mapping[str, object]) -> list[str]:
    """What differs between the workspace of `out` and this identity."""
    found = json.loads((workspace_folder(out) / IDENTITY).read_text("utf-8"))
    return sorted(key for key in identity if found.get(key) != identity[key])


def is_finished(out: Path, identity: Mapping[str, object]) -> bool:
    """Whether this very build was stopped between publishing `out` and removing its workspace."""
    whole = out.is_dir() and (workspace_folder(out) / IDENTITY).is_file()
    return whole and not changes(out, identity)


@cache
def code_digest() -> str:
    """sha256 over the sources that decide what a build makes."""
    digest = hashlib.sha256()
    for package in (compiler, planner):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
