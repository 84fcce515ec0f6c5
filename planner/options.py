"""What the verbs of `planner` share: options, and printing one JSON document."""

import json
from collections.abc import Mapping
from pathlib import Path

import click

from planner.plan import SCHEMA_VERSION

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
spec_file = click.argument("spec", type=click.Path(path_type=Path))
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH.TO.KEY=VALUE",
    help="Override one key of the spec; may be repeated.",
)


def print_card(title: str, rows: Mapping[str, object]) -> None:
    """One thing of a list, a fact a line."""
    width = max(map(len, rows)) + 2
    lines = (f"  {key:<{width}}{said}".rstrip() for key, said in rows.items())
    click.echo("\n".join((title, "", *lines)))


def print_json(**fields: object) -> None:
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **fields}, indent=2))
