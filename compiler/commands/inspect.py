"""Show what an artifact holds: base, format, sites, tenants and sizes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from compiler.artifact import read_manifest
from compiler.manifest import Manifest, tenant_order

SCHEMA_VERSION = 1
MEBIBYTE = 1 << 20


@click.command("inspect")
@click.argument("folder", metavar="ARTIFACT", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(folder: Path, *, as_json: bool) -> None:
    """Show what an artifact holds: base, format, sites, tenants and sizes.

    Only the manifest is read; `compiler verify` checks the files.

    \b
    Example:
        compiler inspect faq/
    """
    manifest = read_manifest(folder)
    if as_json:
        click.echo(json.dumps(document(manifest), indent=2))
    else:
        click.echo("\n".join(lines(manifest)))


def document(manifest: Manifest) -> dict[str, Any]:
    body = manifest.model_dump(mode="json", exclude={"schema_version"})
    for name in manifest.tenants:
        body["tenants"][name]["size_bytes"] = tenant_bytes(manifest, name)
    return {"schema_version": SCHEMA_VERSION, "size_bytes": total_bytes(manifest), **body}


def lines(manifest: Manifest) -> list[str]:
    roles = Counter(site.role for site in manifest.sites)
    counted = ", ".join(f"{count} {role}" for role, count in roles.items())
    facts = {
        "kind": manifest.kind,
        "task": manifest.task,
        "base": f"{manifest.base.name} ({manifest.base.digest[:12]})",
        "format": f"{manifest.format}, {manifest.precision}",
        "sites": f"{len(manifest.sites)}: {counted}" if roles else "none",
        "size": _size(total_bytes(manifest)),
        "tenants": str(len(manifest.tenants)),
    }
    return [
        *(f"{key:<8} {value}" for key, value in facts.items()),
        *(_tenant_line(manifest, name) for name in tenant_order(manifest)),
    ]


def total_bytes(manifest: Manifest) -> int:
    return sum(record.bytes for record in manifest.files.values())


def tenant_bytes(manifest: Manifest, name: str) -> int:
    return sum(manifest.files[path].bytes for path in manifest.tenants[name].files)


def _tenant_line(manifest: Manifest, name: str) -> str:
    record = manifest.tenants[name]
    parts = [
        record.method,
        *([f"rank {record.rank}"] if record.rank is not None else []),
        f"{len(record.targets)} targets",
        _size(tenant_bytes(manifest, name)),
        *([f"labels {', '.join(record.labels)}"] if record.labels else []),
    ]
    return f"  {name}: {', '.join(parts)}"


def _size(count: int) -> str:
    return f"{count / MEBIBYTE:.1f} MiB"
