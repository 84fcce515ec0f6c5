"""Print the JSON Schema of a document: spec, plan, case, estimate or frontier."""

import json

import click

from planner.case import Case
from planner.estimation import Estimate
from planner.options import as_json
from planner.plan import Plan
from planner.section import Section
from planner.spec import Spec
from planner.tradeoffs import Frontier

DOCUMENTS: dict[str, type[Section]] = {
    "spec": Spec,
    "plan": Plan,
    "case": Case,
    "estimate": Estimate,
    "frontier": Frontier,
}


@click.command("schema", epilog="Example: planner schema plan")
@click.argument("document", type=click.Choice(list(DOCUMENTS)), default="spec")
@as_json
def command(*, document: str, as_json: bool) -> None:
    """Print the JSON Schema of DOCUMENT; it is JSON with or without --json."""
    click.echo(json.dumps(DOCUMENTS[document].model_json_schema(), indent=2))
