"""Train a plan's tenants on a model and publish the artifact that serves them."""

import json
from pathlib import Path

import click

from compiler.request import Request
from planner.documents import load_plan
from planner.errors import UsageError

SCHEMA_VERSION = 1


@click.command(
    "build",
    epilog="Example: compiler build plan.json --model SmolLM2 --data acme=acme.jsonl "
    "--data globex=globex.jsonl --out artifact",
)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Model folder.")
@click.option("--data", "data", multiple=True, metavar="TENANT=FILE", help="Repeat per tenant.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Artifact folder.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override the plan.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of captured graphs.")
@click.option("--replace", is_flag=True, help="Replace an artifact that exists.")
@click.option("--restart", is_flag=True, help="Discard an unfinished build.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def command(
    *,
    plan: Path,
    model: Path,
    data: tuple[str, ...],
    out: Path,
    overrides: tuple[str, ...],
    cache: Path | None,
    replace: bool,
    restart: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train every tenant of PLAN and publish one artifact.

    An interrupted build goes on where it was when the same command is given again.
    """
    request = Request(
        plan=load_plan(plan, overrides),
        model=model,
        data=_data(data),
        out=out,
        cache=cache,
        replace=replace,
        restart=restart,
        quiet=quiet,
    )
    # After everything cheap has been read and checked: torch takes seconds to load.
    from compiler.build import build

    manifest = build(request, lambda text: None if quiet else click.echo(text, err=True))
    if as_json:
        document = {
            "schema_version": SCHEMA_VERSION,
            "artifact": str(out),
            "manifest": manifest.model_dump(mode="json"),
        }
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(out)


def _data(entries: tuple[str, ...]) -> dict[str, Path]:
    data: dict[str, Path] = {}
    for entry in entries:
        tenant, equals, path = entry.partition("=")
        if not equals or not path:
            raise UsageError(f"--data takes TENANT=FILE, not '{entry}'")
        if tenant in data:
            raise UsageError(f"tenant '{tenant}' is given twice")
        data[tenant] = Path(path)
    return data
