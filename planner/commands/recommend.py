"""Choose method, rank, format, batch and export for a spec."""

from pathlib import Path

import click

from planner.documents import dump, load_spec, write
from planner.options import as_json, overrides, spec_file
from planner.recommendation import recommend
from planner.render import render


@click.command(
    "recommend", epilog="Example: planner recommend spec.json --set vram_gib=16 --out plan.json"
)
@spec_file
@click.option("--out", type=click.Path(path_type=Path), help="Write the plan to this file.")
@click.option("--include-unbuildable", is_flag=True, help="Weigh what the compiler lacks too.")
@overrides
@as_json
def command(
    *,
    spec: Path,
    out: Path | None,
    include_unbuildable: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Choose method, rank, format, batch and export for SPEC."""
    plan = recommend(load_spec(spec, overrides), unbuildable=include_unbuildable)
    if out is not None:
        write(out, dump(plan))
        click.echo(f"wrote {out}", err=True)
    click.echo(dump(plan) if as_json else render(plan), nl=False)
