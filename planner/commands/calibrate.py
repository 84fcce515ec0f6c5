"""Time this machine, or learn from its builds, so that its figures are measured ones."""

import click

from planner.options import as_json, print_json


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
    from planner.calibration import measure, report, save  # noqa: PLC0415, help needs none of it

    found = measure(quick=quick)
    report(found, save(found), as_json=as_json)


def _learn(*, as_json: bool) -> None:
    from planner.calibration_builds import learn_from_builds  # noqa: PLC0415

    found, short = learn_from_builds()
    if as_json:
        print_json(corrections=found.model_dump()["corrections"], missing=short)
        return
    for row in found.corrections:
        click.echo(
            f"{row.quantity:<32}'{row.hardware}': {row.factor:.2f} x predicted "
            f"({row.low:.2f} to {row.high:.2f}, {row.builds} builds)"
        )
    for sentence in short:
        click.echo(sentence)
