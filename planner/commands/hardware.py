"""List the hardware of the catalogue."""

import click

from planner import catalog
from planner.options import as_json, print_json


@click.command("hardware", epilog="Example: planner hardware --json")
@as_json
def command(*, as_json: bool) -> None:
    """List the hardware of the catalogue."""
    rows = {name: catalog.entry("hardware", name) for name in catalog.names("hardware")}
    if as_json:
        print_json(hardware=rows)
        return
    for name, row in rows.items():
        click.echo(f"{name:<20}{row['title']!s:<42}{row['memory_gib']:>16,} GiB")
