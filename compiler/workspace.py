"""Where a build keeps what it has finished, so that a killed one goes on where it was.

The folder lies beside the artifact and is bound to one build by a digest of everything that
decides its result; a build with other inputs does not continue it.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact import sync, write_durably
from planner.errors import DriftError

IDENTITY = "identity.json"


@dataclass(frozen=True)
class Workspace:
    """`folder` holds `<tenant>/` for training and `<tenant>.safetensors` when it is trained."""

    folder: Path

    def training(self, tenant: str) -> Path:
        return self.folder / tenant

    def adapter(self, tenant: str) -> Path:
        return self.folder / f"{tenant}.safetensors"

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def open_workspace(out: Path, identity: Mapping[str, object], *, restart: bool) -> Workspace:
    """The workspace of the build that makes `out`.

    Raises DriftError when one of another build is there, unless `restart` discards it.
    """
    folder = out.with_name(f".{out.name}.building")
    text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
    path = folder / IDENTITY
    if restart and folder.exists():
        shutil.rmtree(folder)
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        changed = sorted(key for key in identity if found.get(key) != identity[key])
        if changed:
            raise DriftError(
                f"an unfinished build of '{out}' has other inputs: {', '.join(changed)} changed",
                hint="give the same inputs to go on with it, or --restart to discard it",
            )
        return Workspace(folder)
    folder.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    write_durably(aside, text.encode())
    aside.replace(path)
    sync(folder)
    return Workspace(folder)


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
