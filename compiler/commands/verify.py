"""Check every file of an artifact against its manifest, and every tenant against the base."""

import json
from pathlib import Path

import click

from compiler import artifact
from compiler.tenants import check_tenants

SCHEMA_VERSION = 1


@click.command("verify")
@click.argument("folder", metavar="ARTIFACT", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(folder: Path, *, as_json: bool) -> None:
    """Check every file of an artifact against its manifest, and every tenant against the base.

    Nothing of the artifact is run. The exit code is 4 when a check fails.

    \b
    Example:
        compiler verify faq/
    """
    manifest = artifact.verify(folder)
    check_tenants(folder, manifest)
    files, size = len(manifest.files), sum(record.bytes for record in manifest.files.values())
    if as_json:
        document = {
            "schema_version": SCHEMA_VERSION,
            "verified": True,
            "files": files,
            "size_bytes": size,
            "tenants": list(manifest.tenants),
            "base_digest": manifest.base.digest,
        }
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"verified: {files} files, {size} bytes, {len(manifest.tenants)} tenants")
