"""Check a spec; print what is assumed where it is silent and how much is feasible."""

from pathlib import Path

import click

from planner.documents import load_spec
from planner.evaluate import search
from planner.options import as_json, overrides, print_json, spec_file
from planner.resolve import resolve


@click.command("validate", epilog="Example: planner validate spec.json")
@spec_file
@overrides
@as_json
def command(*, spec: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check SPEC; print what is assumed where it is silent and how much is feasible."""
    scenario = resolve(load_spec(spec, overrides))
    weighed = search(scenario)
    feasible, all_of_them = len(weighed.feasible), len(weighed.candidates)
    if as_json:
        print_json(
            valid=True,
            feasible_candidates=feasible,
            candidates=all_of_them,
            model=scenario.model.name,
            parameters=scenario.architecture.parameters,
            assumptions=scenario.assumptions,
        )
        return
    click.echo(f"{spec}: valid, {feasible} of {all_of_them} candidates keep every limit")
    for assumption in scenario.assumptions:
        click.echo(f"  assumed: {assumption}")
