"""List the models of the catalogue."""

import click

from planner import catalog
from planner.options import as_json, print_json

COLUMNS = "{:<20}{:<27}{:<13}{:<17}{:>16}  {}"


@click.command("models", epilog="Example: planner models --json")
@as_json
def command(*, as_json: bool) -> None:
    """List the models of the catalogue, with how many parameters a token passes."""
    rows = {name: _row(name) for name in catalog.names("models")}
    if as_json:
        print_json(models=rows)
        return
    click.echo(COLUMNS.format("name", "title", "family", "kind", "parameters", "active").rstrip())
    for name, row in rows.items():
        total, active = row["parameters"], row["active_parameters"]
        cells = (name, row["title"], row["family"], row["kind"], f"{total:,}")
        click.echo(COLUMNS.format(*cells, f"{active:,}" if active != total else "").rstrip())


def _row(name: str) -> catalog.Json:
    """The catalogue's entry and what its config says."""
    found = catalog.model(name).architecture
    return catalog.entry("models", name) | {
        "family": found.model_type,
        "kind": found.kind,
        "parameters": found.parameters,
        "active_parameters": found.active_parameters,
    }
