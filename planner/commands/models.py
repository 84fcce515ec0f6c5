"""List the models of the catalogue."""

import click

from planner import catalog
from planner.options import as_json, print_json


@click.command("models", epilog="Example: planner models")
@as_json
def command(*, as_json: bool) -> None:
    """List the models of the catalogue."""
    rows = {name: catalog.entry("models", name) for name in catalog.names("models")}
    if as_json:
        print_json(models=rows)
        return
    for name, row in rows.items():
        click.echo(f"{name:<20}{row['title']!s:<42}{row['published_parameters']:>16,} parameters")
