"""Print the reasons, rejections and figures of a plan."""

from pathlib import Path

import click

from planner.documents import load_plan
from planner.options import as_json, print_json
from planner.render import render


@click.command("explain", epilog="Example: planner explain plan.json")
@click.argument("plan", type=click.Path(path_type=Path))
@as_json
def command(*, plan: Path, as_json: bool) -> None:
    """Print the reasons, rejections and figures of PLAN."""
    found = load_plan(plan)
    if as_json:
        keys = {"candidate", "reasons", "rejections", "figures", "evidence_ids"}
        print_json(**found.model_dump(include=keys))
    else:
        click.echo(render(found), nl=False)
