"""Predict a plan's peak training memory exactly, without weights and without a GPU."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner import catalog
from planner.documents import dump, load_plan, write
from planner.errors import DriftError
from planner.plan import Plan

if TYPE_CHECKING:
    from compiler.simulate import Simulation

SCHEMA_VERSION = 1
FIGURE = "training.simulated_peak_allocated_bytes"
MEBIBYTE = 1 << 20


@click.command("simulate", epilog="Example: compiler simulate plan.json --out plan.json")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--model", help="Catalogue name, config.json or its folder; else the plan's own.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override the plan.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the plan with the figure.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def command(
    *, plan: Path, model: str | None, overrides: tuple[str, ...], out: Path | None, as_json: bool
) -> None:
    """Run one training step of PLAN on tensors without data and report the peak.

    The step is the compiler's own, adapters, quantised base, checkpointing, loss and optimizer
    included; what is counted is every storage alive.
    """
    loaded = load_plan(plan, overrides)
    config = _config(loaded, model)
    # After everything cheap has been read and checked: torch takes seconds to load.
    from compiler.simulate import simulate

    found = simulate(loaded, config)
    if out is not None:
        figures = {**loaded.figures, FIGURE: found.figure()}
        write(out, dump(loaded.model_copy(update={"figures": figures})))
        click.echo(f"wrote {out}", err=True)
    click.echo(json.dumps(document(found), indent=2) if as_json else "\n".join(lines(found)))


def document(found: "Simulation") -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, **asdict(found), "source": found.source}


def lines(found: "Simulation") -> list[str]:
    """The peak, what it is made of, and how high each phase goes."""
    return [
        f"peak        {_size(found.peak_allocated_bytes)} in the {found.phase}",
        *_table(found.by_kind),
        "",
        "peak by phase",
        *_table(found.phases),
        "",
        found.source,
    ]


def _table(sizes: Mapping[str, int]) -> list[str]:
    return [f"  {name:<11} {_size(size):>14}" for name, size in sizes.items() if size]


def _size(count: int) -> str:
    return f"{count / MEBIBYTE:,.1f} MiB"


def _config(plan: Plan, model: str | None) -> Mapping[str, object]:
    """The config.json to run; raises DriftError when it is not the one that was planned for."""
    found = catalog.model(plan.spec.model if model is None else model)
    digest = catalog.config_digest(found.config)
    if digest != plan.model.config_digest:
        raise DriftError(
            f"the plan is for '{plan.model.name}' (config {plan.model.config_digest[:12]}), but "
            f"'{found.name}' is of config {digest[:12]}",
            hint="make a plan from this model's config.json",
        )
    return found.config
