"""The tenants of an artifact on disk: each a folder, put in or taken out while the rest is left.

A change becomes real when the manifest is replaced. A folder `.change-<name>` exists meanwhile, so
that an interrupted change is recognised, ignored by everyone and cleared by the next one.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import safetensors
import safetensors.numpy

from compiler import adapter as adapters
from compiler.adapter import Adapter
from compiler.artifact import (
    PENDING,
    file_record,
    read_manifest,
    write_durably,
    write_manifest,
)
from compiler.frozen_weights import base_bias, base_weight
from compiler.lower import lower
from compiler.manifest import Manifest, TenantRecord, tenant_name, unknown_tenant
from compiler.row import LoweredSite, Row, Site, check_row, pack_row, row_from_tensors, row_tensors
from planner.errors import IncompatibleError, UsageError

ADAPTER = "adapter.safetensors"
ROW = "row.safetensors"


def tenant_folder(name: str) -> str:
    return f"tenants/{name}"


def bank_sites(manifest: Manifest) -> tuple[Site, ...]:
    """The sites in the order of the bank's directory."""
    return tuple(Site(s.name, s.out_features, s.in_features) for s in manifest.sites)


def check_base(manifest: Manifest, adapter: Adapter, name: str) -> None:
    """Raises IncompatibleError for an adapter that was trained on another base model."""
    if adapter.base_digest != manifest.base.digest:
        raise IncompatibleError(
            f"tenant '{name}' was trained on base {adapter.base_digest[:12]}, but the artifact "
            f"holds base {manifest.base.digest[:12]} ('{manifest.base.name}')",
            hint="train the tenant on this base, or serve it from an artifact of its own base",
        )


def lower_onto(folder: Path, manifest: Manifest, adapter: Adapter) -> dict[str, LoweredSite]:
    """The adapter's updates in the form of the bank, on the frozen weights of the artifact."""
    return lower(
        adapter, partial(base_weight, folder, manifest), partial(base_bias, folder, manifest)
    )


def write_tenant(
    folder: Path, sites: tuple[Site, ...], adapter: Adapter, lowered: Mapping[str, LoweredSite]
) -> None:
    """Writes the tenant's two files into `folder`, which is made."""
    folder.mkdir(parents=True)
    write_durably(folder / ROW, safetensors.numpy.save(row_tensors(pack_row(sites, lowered))))
    adapters.save(adapter, folder / ADAPTER)


def describe(name: str, adapter: Adapter, order: int) -> TenantRecord:
    """What the manifest says of a tenant whose files are in its folder."""
    return TenantRecord(
        order=order,
        method=adapter.method,
        rank=adapter.rank,
        alpha=adapter.alpha,
        targets=tuple(target.name for target in adapter.targets),
        scalings=dict(adapter.scalings),
        labels=adapter.labels,
        template=adapter.template,
        files=tuple(f"{tenant_folder(name)}/{file}" for file in (ADAPTER, ROW)),
    )


def read_adapter(source: Path) -> Adapter:
    """The adapter in a tenant's folder, or in the file itself."""
    path = source / ADAPTER if source.is_dir() else source
    if not path.is_file():
        raise UsageError(f"there is no adapter at '{path}'")
    return adapters.load(path)


def read_row(folder: Path, name: str) -> Row:
    """A listed tenant's row, ready for the bank."""
    path = folder / tenant_folder(name) / ROW
    try:
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise IncompatibleError(f"'{path}' is not a safetensors file: {error}") from error
    return row_from_tensors(tensors)


def add_tenant(folder: Path, name: str, adapter: Adapter) -> Manifest:
    """Adds a tenant to the artifact on disk; the name must be free."""
    tenant_name(name)
    with _change(folder, name) as manifest:
        if manifest.kind == "merged":
            raise IncompatibleError("a merged artifact holds one tenant and takes no other")
        if name in manifest.tenants:
            raise UsageError(f"tenant '{name}' exists already", hint="remove it first")
        check_base(manifest, adapter, name)
        lowered = lower_onto(folder, manifest, adapter)
        pending = folder / f"{PENDING}{name}"
        write_tenant(pending / name, bank_sites(manifest), adapter, lowered)
        destination = folder / tenant_folder(name)
        destination.parent.mkdir(exist_ok=True)
        (pending / name).rename(destination)
        order = 1 + max((record.order for record in manifest.tenants.values()), default=0)
        record = describe(name, adapter, order)
        files = {path: file_record(folder / path) for path in record.files}
        return _rewrite(
            folder,
            manifest,
            tenants={**manifest.tenants, name: record},
            files={**manifest.files, **files},
        )


def remove_tenant(folder: Path, name: str) -> Manifest:
    """Takes a tenant out of the artifact on disk."""
    tenant_name(name)
    with _change(folder, name) as manifest:
        if manifest.kind == "merged":
            raise IncompatibleError("a merged artifact holds one tenant and cannot lose it")
        if name not in manifest.tenants:
            raise unknown_tenant(name, manifest.tenants)
        gone = manifest.tenants[name].files
        changed = _rewrite(
            folder,
            manifest,
            tenants={n: record for n, record in manifest.tenants.items() if n != name},
            files={path: record for path, record in manifest.files.items() if path not in gone},
        )
        shutil.rmtree(folder / tenant_folder(name))
        return changed


@contextmanager
def _change(folder: Path, name: str) -> Iterator[Manifest]:
    """One change at a time; what an interrupted one left behind is cleared first."""
    read_manifest(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        manifest = read_manifest(folder)
        _clear_interrupted(folder, manifest)
        pending = folder / f"{PENDING}{name}"
        pending.mkdir()
        try:
            yield manifest
        finally:
            _clear_interrupted(folder, read_manifest(folder))
    finally:
        os.close(handle)


def _clear_interrupted(folder: Path, manifest: Manifest) -> None:
    for pending in folder.glob(f"{PENDING}*"):
        if not pending.is_dir():
            pending.unlink()
            continue
        name = pending.name.removeprefix(PENDING)
        if name not in manifest.tenants:
            shutil.rmtree(folder / tenant_folder(tenant_name(name)), ignore_errors=True)
        shutil.rmtree(pending)


def _rewrite(folder: Path, manifest: Manifest, **changes: object) -> Manifest:
    changed = Manifest.model_validate({**manifest.model_dump(), **changes})
    write_manifest(folder, changed)
    return changed


def check_tenants(folder: Path, manifest: Manifest) -> None:
    """Raises IncompatibleError unless every tenant's files fit its base and the sites."""
    if manifest.kind == "merged":
        return
    for name in manifest.tenants:
        check_base(manifest, read_adapter(folder / tenant_folder(name)), name)
        check_row(bank_sites(manifest), read_row(folder, name))
