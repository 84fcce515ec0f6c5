"""Show every trade-off open to a spec, as a table, a picture or a page."""

from pathlib import Path

import click

from planner.documents import dump, load_spec, write
from planner.options import as_json, overrides, spec_file
from planner.tradeoffs import Frontier, Point, frontier
from planner.units import amount, seconds, signed


@click.command(
    "frontier", epilog="Example: planner frontier spec.json --plot frontier.png --html page.html"
)
@spec_file
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the frontier: .png or .svg.")
@click.option("--html", type=click.Path(path_type=Path), help="Write one interactive page.")
@click.option("--include-unbuildable", is_flag=True, help="Weigh what the compiler lacks too.")
@overrides
@as_json
def command(
    *,
    spec: Path,
    plot: Path | None,
    html: Path | None,
    include_unbuildable: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show every trade-off open to SPEC: the Pareto front, the choice, each method's best."""
    found = frontier(load_spec(spec, overrides), unbuildable=include_unbuildable)
    if plot is not None:
        # Drawing loads a plotting library, which a table does without.
        from planner.plot import draw  # noqa: PLC0415

        draw(found, plot)
        click.echo(f"wrote {plot}", err=True)
    if html is not None:
        from planner.page import page  # noqa: PLC0415

        write(html, page(found))
        click.echo(f"wrote {html}", err=True)
    click.echo(dump(found) if as_json else _table(found), nl=False)


def _table(found: Frontier) -> str:
    """The choice, then the front from the best quality down, then what cannot be had."""
    head = f"{'':<2}{'points':>14}  {'training':>10}  {'per tenant':>10}  {'latency':>8}  candidate"
    order = sorted(found.points, key=lambda point: -(point.values["quality_points"] or 0.0))
    count = sum(point.on_frontier for point in order)
    front = [_line(found, p) for p in order if p.on_frontier or p.id == found.chosen]
    # What it is dominated by is within the ties that the choice was made among.
    besides = ", and the choice, which is simpler" if len(front) > count else ""
    broken = [f"  {p.label}: over the limit of {', '.join(p.broken)}" for p in order if p.broken]
    parts = [f"{found.model}: {found.task}, {count} trade-offs{besides}", "", head, *front]
    if not front:
        parts = [f"{found.model}: {found.task}, nothing fits; planner recommend says what would"]
    if broken:
        parts += ["", "Out of reach", *broken]
    return "\n".join(parts) + "\n"


def _line(found: Frontier, point: Point) -> str:
    values = point.values
    mark = "> " if point.id == found.chosen else "  "
    latency = values["latency_seconds"]
    return (
        f"{mark}{signed(values['quality_points'] or 0.0):>6} +/- {point.quality_half_width:<4.1f}"
        f"{amount(values['training_bytes'] or 0.0):>12}"
        f"{amount(values['serving_bytes_per_tenant'] or 0.0):>12}"
        f"{seconds(latency) if latency else 'unknown':>10}  {point.label}"
    )
