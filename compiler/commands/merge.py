"""Fold one tenant of an artifact into the base weights, as an artifact of its own."""

import json
from pathlib import Path

import click

from compiler.merge import merge

SCHEMA_VERSION = 1


@click.command("merge", epilog="Example: compiler merge artifact --tenant acme --out acme")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--tenant", required=True, help="The tenant to fold in.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Artifact folder.")
@click.option("--replace", is_flag=True, help="Replace an artifact that exists.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def command(
    *,
    artifact: Path,
    tenant: str,
    out: Path,
    replace: bool,
    as_json: bool,
) -> None:
    """Write a graph that serves TENANT alone, with nothing added to the base model's cost.

    A 4-bit base is quantised again, and the drift of each weight is reported.
    """
    drift = merge(artifact, tenant, out, replace=replace)
    if as_json:
        document = {
            "schema_version": SCHEMA_VERSION,
            "artifact": str(out),
            "weight_drift": drift,
        }
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(out)
    if drift:
        largest = max(drift.values())
        click.echo(f"largest relative weight drift {largest:.4f}, see drift.json", err=True)
