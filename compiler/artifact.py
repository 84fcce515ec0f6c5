"""The artifact folder: written aside, verified, then put in place by one rename.

A file is trusted only when the manifest names it and its size and sha256 agree; a file that the
manifest does not name, or a symbolic link, is refused.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from compiler.manifest import MANIFEST, FileRecord, Manifest, parse, render
from planner.errors import IncompatibleError, UsageError

MANIFEST_LIMIT_BYTES = 64 << 20
PENDING = ".change-"
"""A folder of this prefix marks a tenant that is being added or removed; see tenants.py."""


def staging_folder(out: Path) -> Path:
    """Where to prepare `out`: beside it, so that a rename can publish it."""
    return beside(out, "partial")


def beside(out: Path, suffix: str) -> Path:
    """The hidden neighbour of `out`; raises UsageError where `out` has no name, as '.' and '/'."""
    if not out.name:
        raise UsageError(f"'{out}' has no name of its own", hint="name a folder that is to be made")
    return out.with_name(f".{out.name}.{suffix}")


def file_record(path: Path) -> FileRecord:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(sha256=digest, bytes=stream.tell())


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Size and digest of every file below the folder but the manifest."""
    return {path: file_record(folder / path) for path in _listing(folder)}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replaces the manifest in one step."""
    temporary = folder / f"{PENDING}MANIFEST"  # in capitals: no tenant can have that name
    write_durably(temporary, render(manifest))
    temporary.replace(folder / MANIFEST)
    sync(folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone; raises IncompatibleError when absent or altered, and checks no file."""
    path = folder / MANIFEST
    if not path.is_file():
        raise IncompatibleError(f"'{folder}' is not an artifact: it has no {MANIFEST}")
    if path.is_symlink():
        raise IncompatibleError(f"{MANIFEST} is a symbolic link")
    size = path.stat().st_size
    if size > MANIFEST_LIMIT_BYTES:
        raise IncompatibleError(f"{MANIFEST} has {size} bytes; at most {MANIFEST_LIMIT_BYTES}")
    return parse(path.read_bytes())


def verify(folder: Path) -> Manifest:
    """The manifest, after every file was found to be what it says; raises IncompatibleError."""
    manifest = read_manifest(folder)
    found = set(_listing(folder))
    for path in sorted(manifest.files.keys() - found):
        raise IncompatibleError(f"'{path}' is missing from the artifact", hint=_REBUILD)
    for path in sorted(found - manifest.files.keys()):
        if not _left_by_a_change(folder, path):
            raise IncompatibleError(f"'{path}' does not belong to the artifact")
    for path, record in manifest.files.items():
        check_file(folder, path, record)
    return manifest


def check_file(folder: Path, path: str, record: FileRecord) -> None:
    """Raises IncompatibleError unless the file has that size and digest."""
    if not (folder / path).is_file():
        raise IncompatibleError(f"'{path}' is missing from the artifact", hint=_REBUILD)
    size = (folder / path).stat().st_size
    if size != record.bytes:
        raise IncompatibleError(
            f"'{path}' has {size} bytes, but the manifest says {record.bytes}", hint=_REBUILD
        )
    found = file_record(folder / path).sha256
    if found != record.sha256:
        raise IncompatibleError(
            f"'{path}' is damaged: sha256 {found[:12]}…, but the manifest says "
            f"{record.sha256[:12]}…",
            hint=_REBUILD,
        )


def publish(staging: Path, out: Path, *, replace: bool = False) -> Manifest:
    """Verifies the staged artifact and renames it to `out`, which must not exist unless replaced.

    Whoever looks at `out` sees the old artifact, nothing, or the whole new one.
    """
    check_vacant(out, replace=replace)
    manifest = verify(staging)
    for path in _listing(staging):
        sync(staging / path)
    if out.exists():
        aside = out.with_name(f".{out.name}.replaced-{os.getpid()}")
        out.rename(aside)
        staging.rename(out)
        shutil.rmtree(aside)
    else:
        staging.rename(out)
    sync(out.parent)
    return manifest


def check_vacant(out: Path, *, replace: bool) -> None:
    """Raises UsageError when publishing to `out` would overwrite what may not be overwritten."""
    if not os.path.lexists(out):
        return
    if not replace:
        raise UsageError(f"'{out}' exists already", hint="name another folder, or replace this one")
    if not (out / MANIFEST).is_file():
        raise UsageError(f"'{out}' is not an artifact and is not replaced")


def check_outside(out: Path, folder: Path) -> None:
    """Raises UsageError when `out` lies in that artifact, which holds its own files only."""
    if folder.resolve() in out.resolve().parents:
        raise UsageError(f"'{out}' lies in the artifact '{folder}'", hint="name a folder elsewhere")


def write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync(path: Path) -> None:
    """Has the disk hold what was written to the file, or renamed within the folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _listing(folder: Path) -> Iterator[str]:
    """Relative paths of all files but the manifest; raises IncompatibleError at a symbolic link."""
    for parent, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise IncompatibleError(f"'{relative}' is a symbolic link", hint=_NO_LINKS)
            if name in files and not path.is_file():
                raise IncompatibleError(f"'{relative}' is not a regular file")
            if name in files and relative != MANIFEST:
                yield relative


def _left_by_a_change(folder: Path, path: str) -> bool:
    """Whether an interrupted change of a tenant explains a file that the manifest does not name."""
    first, *rest = path.split("/")
    if first.startswith(PENDING):
        return True
    return first == "tenants" and len(rest) > 1 and (folder / f"{PENDING}{rest[0]}").is_dir()


_REBUILD = "copy the artifact again from its source, or build it again"
_NO_LINKS = "copy the file itself into the artifact"
