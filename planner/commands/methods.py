"""List the methods."""

import click

from planner.method import methods
from planner.options import as_json, print_json


@click.command("methods", epilog="Example: planner methods --json")
@as_json
def command(*, as_json: bool) -> None:
    """List the methods."""
    rows = {
        name: {"title": m.title, "paper": m.paper, "ranks": m.ranks, "formats": m.formats}
        for name, m in methods().items()
    }
    if as_json:
        print_json(methods=rows)
        return
    for name, method in methods().items():
        click.echo(f"{name:<12}{method.title:<20}{method.paper or ''}".rstrip())
