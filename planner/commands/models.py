"""List the models of the catalogue."""

import click

from planner import catalog
from planner.options import as_json, print_json

COLUMNS = "{:<20}{:<27}{:<13}{:<17}{:<7}{:>16}  {}"


@click.command("models", epilog="Example: planner models --json")
@as_json
def command(*, as_json: bool) -> None:
    """List the models of the catalogue, whether the compiler builds them, and their parameters."""
    rows = {name: _row(name) for name in catalog.names("models")}
    if as_json:
        print_json(models=rows)
        return
    heads = ("name", "title", "family", "kind", "builds", "parameters", "active")
    click.echo(COLUMNS.format(*heads).rstrip())
    for name, row in rows.items():
        total, active = row["parameters"], row["active_parameters"]
        built = "no" if row["unbuilt"] else "yes"
        cells = (name, row["title"], row["family"], row["kind"], built, f"{total:,}")
        click.echo(COLUMNS.format(*cells, f"{active:,}" if active != total else "").rstrip())


def _row(name: str) -> catalog.Json:
    """The catalogue's entry and what its config says."""
    found = catalog.model(name).architecture
    return catalog.entry("models", name) | {
        "family": found.model_type,
        "kind": found.kind,
        "unbuilt": found.unbuilt,
        "parameters": found.parameters,
        "active_parameters": found.active_parameters,
    }
