"""The planner command. Data goes to stdout, everything else to stderr."""

import json
from pathlib import Path

import click
from pydantic import BaseModel

from planner import catalog
from planner.documents import dump, load_plan, load_spec, write
from planner.errors import ParetuneError
from planner.evaluate import search
from planner.method import methods as all_methods
from planner.plan import SCHEMA_VERSION, Plan
from planner.recommendation import recommend as plan_for
from planner.render import render
from planner.resolve import resolve
from planner.spec import Spec

INTERRUPTED = 130

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
spec_file = click.argument("spec", type=click.Path(path_type=Path))
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH.TO.KEY=VALUE",
    help="Override one key of the spec; may be repeated.",
)


class Commands(click.Group):
    """Turns our errors into a message, a hint and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ParetuneError as error:
            click.echo(f"error: {error}", err=True)
            if error.hint:
                click.echo(f"\nhint: {error.hint}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("error: interrupted", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=Commands)
@click.version_option(package_name="paretune", message="%(version)s")
def main() -> None:
    """Declare task, hardware and tenants; get the PEFT method that fits, with reasons.

    \b
    Example:
      planner recommend spec.json --out plan.json
    """


@main.command()
@spec_file
@click.option("--out", type=click.Path(path_type=Path), help="Write the plan to this file.")
@overrides
@as_json
def recommend(spec: Path, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001
    """Choose method, rank, format, batch and export for SPEC.

    \b
    Example:
      planner recommend spec.json --set vram_gib=16 --out plan.json
    """
    plan = plan_for(load_spec(spec, overrides))
    if out is not None:
        write(out, dump(plan))
        click.echo(f"wrote {out}", err=True)
    click.echo(dump(plan) if as_json else render(plan), nl=False)


@main.command()
@spec_file
@overrides
@as_json
def validate(spec: Path, overrides: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001
    """Check SPEC; print what is assumed where it is silent and how much is feasible.

    \b
    Example:
      planner validate spec.json
    """
    scenario = resolve(load_spec(spec, overrides))
    weighed = search(scenario)
    feasible, all_of_them = len(weighed.feasible), len(weighed.candidates)
    if as_json:
        _print(
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


@main.command()
@click.argument("plan", type=click.Path(path_type=Path))
@as_json
def explain(plan: Path, as_json: bool) -> None:  # noqa: FBT001
    """Print the reasons, rejections and figures of PLAN.

    \b
    Example:
      planner explain plan.json
    """
    found = load_plan(plan)
    if as_json:
        keys = {"candidate", "reasons", "rejections", "figures", "evidence_ids"}
        _print(**found.model_dump(mode="json", include=keys))
    else:
        click.echo(render(found), nl=False)


@main.command()
@click.argument("document", type=click.Choice(["spec", "plan"]), default="spec")
def schema(document: str) -> None:
    """Print the JSON Schema of a spec or of a plan.

    \b
    Example:
      planner schema plan
    """
    kinds: dict[str, type[BaseModel]] = {"spec": Spec, "plan": Plan}
    click.echo(json.dumps(kinds[document].model_json_schema(), indent=2))


@main.command()
@as_json
def methods(as_json: bool) -> None:  # noqa: FBT001
    """List the methods.

    \b
    Example:
      planner methods --json
    """
    rows = {
        name: {"title": m.title, "paper": m.paper, "ranks": m.ranks, "formats": m.formats}
        for name, m in all_methods().items()
    }
    if as_json:
        _print(methods=rows)
        return
    for name, method in all_methods().items():
        click.echo(f"{name:<12}{method.title:<20}{method.paper or ''}".rstrip())


@main.command()
@as_json
def models(as_json: bool) -> None:  # noqa: FBT001
    """List the models of the catalogue.

    \b
    Example:
      planner models
    """
    _catalogue("models", "published_parameters", "parameters", as_json=as_json)


@main.command()
@as_json
def hardware(as_json: bool) -> None:  # noqa: FBT001
    """List the hardware of the catalogue.

    \b
    Example:
      planner hardware --json
    """
    _catalogue("hardware", "memory_gib", "GiB", as_json=as_json)


def _catalogue(kind: str, column: str, unit: str, *, as_json: bool) -> None:
    rows = {name: catalog.entry(kind, name) for name in catalog.names(kind)}
    if as_json:
        _print(**{kind: rows})
        return
    for name, row in rows.items():
        click.echo(f"{name:<20}{row['title']!s:<42}{row[column]:>16,} {unit}")


def _print(**fields: object) -> None:
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **fields}, indent=2))


if __name__ == "__main__":
    main()
