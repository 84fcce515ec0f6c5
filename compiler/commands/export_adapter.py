"""Write a tenant's adapter as a PEFT directory."""

import json
from pathlib import Path

import click

from compiler.adapter import load
from compiler.artifact import check_file, check_outside, read_manifest
from compiler.manifest import Manifest
from compiler.peft_write import write
from compiler.tenants import ADAPTER, tenant_folder
from planner.errors import IncompatibleError, UsageError

SCHEMA_VERSION = 1


@click.command("export-adapter")
@click.argument("folder", metavar="ARTIFACT", type=click.Path(path_type=Path))
@click.option("--tenant", metavar="NAME", required=True, help="Whose adapter to write.")
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="The directory to make.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(folder: Path, tenant: str, out: Path, *, as_json: bool) -> None:
    """Write a tenant's adapter as a PEFT directory.

    PiSSA is written as plain LoRA of twice the rank, relative to the unchanged base model.

    \b
    Example:
        compiler export-adapter faq/ --tenant acme --out acme-lora/
    """
    manifest = read_manifest(folder)
    check_outside(out, folder)
    path = adapter_file(manifest, tenant)
    check_file(folder, path, manifest.files[path])
    written = write(load(folder / path), out, manifest.base.name)
    document = {
        "schema_version": SCHEMA_VERSION,
        "tenant": tenant,
        "out": str(out),
        "method": written.method,
        "rank": written.rank,
        "alpha": written.alpha,
        "targets": len(written.targets),
        "base_digest": written.base_digest,
    }
    rank = "" if written.rank is None else f", rank {written.rank}"
    text = f"exported {tenant} to {out}: {written.method}{rank}, {len(written.targets)} targets"
    click.echo(json.dumps(document, indent=2) if as_json else text)


def adapter_file(manifest: Manifest, tenant: str) -> str:
    """The listed path of the tenant's adapter."""
    if tenant not in manifest.tenants:
        raise UsageError(
            f"unknown tenant '{tenant}'; tenants are {', '.join(manifest.tenants) or 'none'}"
        )
    path = f"{tenant_folder(tenant)}/{ADAPTER}"
    if path not in manifest.files:
        raise IncompatibleError(
            f"the artifact holds no adapter of '{tenant}', only the merged model"
        )
    return path
