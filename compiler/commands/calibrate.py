"""Time this machine with torch and the fused op, for plans with hardware "local"."""

import click

from planner.options import as_json


@click.command("calibrate", epilog="Example: compiler calibrate --quick")
@click.option("--quick", is_flag=True, help="Some seconds instead of a minute.")
@as_json
def command(*, quick: bool, as_json: bool) -> None:
    """Time this machine with torch and the fused op, for plans with hardware "local".

    It writes what `planner calibrate` writes, and more: bf16 and int8 products, and the op.
    """
    from compiler.calibration import measure  # noqa: PLC0415, torch takes seconds to load
    from planner.calibration import report, save  # noqa: PLC0415

    found = measure(quick=quick)
    report(found, save(found), as_json=as_json)
