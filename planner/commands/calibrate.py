"""Time this machine, or learn from its builds, so that its figures are measured ones."""

from typing import TYPE_CHECKING

import click

from planner.options import as_json, print_json

if TYPE_CHECKING:
    from planner.calibration import Timing


@click.command("calibrate", epilog="Example: planner calibrate --quick")
@click.option("--quick", is_flag=True, help="A second instead of several.")
@click.option("--from-builds", is_flag=True, help="Learn from the builds completed here instead.")
@as_json
def command(*, quick: bool, from_builds: bool, as_json: bool) -> None:
    """Time this machine, or learn from its builds, so that its figures are measured ones.

    Afterwards a spec's hardware may be "local". With the compiler installed, `compiler calibrate`
    also times bf16 products and the fused op.
    """
    if from_builds:
        _learn(as_json=as_json)
    else:
        _measure(quick=quick, as_json=as_json)


def _measure(*, quick: bool, as_json: bool) -> None:
    from planner.calibration import measure, save  # noqa: PLC0415, help needs none of it

    found = measure(quick=quick)
    path = save(found)
    if as_json:
        print_json(path=str(path), calibration=found.model_dump(mode="json"))
        return
    show(found.timings)
    click.echo(f"hardware 'local' in {path}")


def show(timings: "tuple[Timing, ...]") -> None:
    for timing in timings:
        scale = f"{timing.rate / 1e9:10.1f} G{'flop' if timing.unit == 'flops' else 'B'}/s"
        click.echo(f"{timing.name:<52}{timing.seconds * 1e3:10.2f} ms{scale}")


def _learn(*, as_json: bool) -> None:
    from planner.calibration_builds import learn_from_builds  # noqa: PLC0415

    found, short = learn_from_builds()
    if as_json:
        print_json(corrections=found.model_dump(mode="json")["corrections"], missing=short)
        return
    for row in found.corrections:
        click.echo(
            f"{row.quantity:<32}'{row.hardware}': {row.factor:.2f} x predicted "
            f"({row.low:.2f} to {row.high:.2f}, {row.builds} builds)"
        )
    for sentence in short:
        click.echo(sentence)
