"""Put a PEFT adapter into an artifact as a tenant."""

import json
from dataclasses import replace
from pathlib import Path

import click
import torch

from compiler.adapter import Adapter
from compiler.artifact import verify
from compiler.initializers import initialize
from compiler.manifest import Manifest, tenant_name
from compiler.peft import read, read_side
from compiler.tenants import add_tenant
from planner.errors import IncompatibleError
from planner.method import Target, method

SCHEMA_VERSION = 1


@click.command("import-adapter")
@click.argument("source", metavar="PEFT_DIR", type=click.Path(path_type=Path))
@click.option(
    "--into",
    "folder",
    metavar="ARTIFACT",
    required=True,
    type=click.Path(path_type=Path),
    help="The artifact that gets the tenant.",
)
@click.option("--tenant", metavar="NAME", required=True, help="The new tenant's name.")
@click.option("--labels", metavar="A,B,…", help="A classifier's labels, in the order of its rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(source: Path, folder: Path, tenant: str, labels: str | None, *, as_json: bool) -> None:
    """Put a PEFT adapter into an artifact as a tenant.

    PEFT's LoRA, rsLoRA, DoRA, VeRA and IA3 are read; what cannot be honoured is refused by name,
    and the artifact is then as it was.

    \b
    Example:
        compiler import-adapter acme-lora/ --into faq/ --tenant acme
    """
    tenant_name(tenant)
    # Some updates are computed from the base's weights, so these must be what they were.
    manifest = verify(folder)
    names = tuple(labels.split(",")) if labels else None
    adapter = drawn(read(source, sites(manifest), manifest.base.digest, names))
    add_tenant(folder, tenant, adapter)
    base_checked = read_side(source) is not None
    if not base_checked:
        click.echo(
            f"note: '{source}' does not say which base it was trained on; only its names and "
            f"shapes were checked against '{manifest.base.name}'",
            err=True,
        )
    described = document(tenant, adapter, base_checked=base_checked)
    click.echo(json.dumps(described, indent=2) if as_json else line(tenant, adapter))


def sites(manifest: Manifest) -> tuple[Target, ...]:
    return tuple(
        Target(site.name, site.role, site.out_features, site.in_features) for site in manifest.sites
    )


def drawn(adapter: Adapter) -> Adapter:
    """The adapter with the tensors that its file leaves to a seed."""
    record = method(adapter.method)
    missing = [s.name for s in record.model_tensors() if s.name not in adapter.tensors]
    if not missing:
        return adapter

    def refuse(target: str) -> torch.Tensor:
        raise IncompatibleError(f"the file leaves out tensors that depend on '{target}'")

    tensors = initialize(record, adapter.targets, refuse, adapter.rank, 1.0, adapter.seed)
    found = {name: tensors[name].numpy() for name in missing}
    return replace(adapter, tensors={**adapter.tensors, **found})


def document(tenant: str, adapter: Adapter, *, base_checked: bool) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        "tenant": tenant,
        "method": adapter.method,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "targets": len(adapter.targets),
        "labels": adapter.labels,
        "base_digest": adapter.base_digest,
        "base_checked": base_checked,
    }


def line(tenant: str, adapter: Adapter) -> str:
    rank = "" if adapter.rank is None else f", rank {adapter.rank}"
    return f"imported {tenant}: {adapter.method}{rank}, {len(adapter.targets)} targets"
