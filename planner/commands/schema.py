"""Print the JSON Schema of a spec or of a plan."""

import json

import click
from pydantic import BaseModel

from planner.plan import Plan
from planner.spec import Spec

DOCUMENTS: dict[str, type[BaseModel]] = {"spec": Spec, "plan": Plan}


@click.command("schema", epilog="Example: planner schema plan")
@click.argument("document", type=click.Choice(list(DOCUMENTS)), default="spec")
def command(*, document: str) -> None:
    """Print the JSON Schema of DOCUMENT."""
    click.echo(json.dumps(DOCUMENTS[document].model_json_schema(), indent=2))
