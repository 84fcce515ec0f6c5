"""List the hardware of the catalogue, and this machine once it is calibrated."""

import click

from planner import catalog
from planner.options import as_json, print_json

COLUMNS = {
    "memory_gib": "GiB",
    "bandwidth_gb_per_second": "GB/s",
    "fp32_tflops": "fp32",
    "bf16_tflops": "bf16",
    "fp16_tflops": "fp16",
    "int8_tops": "int8",
    "price_per_hour_usd": "USD/h",
}


@click.command("hardware", epilog="Example: planner hardware --json")
@as_json
def command(*, as_json: bool) -> None:
    """List the hardware of the catalogue, and this machine once it is calibrated.

    Rates are in 1e12 operations a second, dense; "-" is unknown or none, and --json says which and
    where every figure is from.
    """
    from planner.calibration import stored  # noqa: PLC0415, help needs none of it

    rows = {name: catalog.entry("hardware", name) for name in catalog.names("hardware")}
    if (measured := stored()) is not None:
        source = f"measured {measured.measured_at} by planner calibrate"
        figures = measured.hardware.model_dump(exclude={"measured"})
        rows["local"] = {
            "name": "local",
            "title": measured.machine.processor,
            **figures,
            "sources": dict.fromkeys(COLUMNS, source),
        }
    if as_json:
        print_json(hardware=rows)
        return
    click.echo(f"{'':<24}" + "".join(f"{title:>9}" for title in COLUMNS.values()))
    for name, row in rows.items():
        click.echo(f"{name:<24}" + "".join(f"{_shown(row[key]):>9}" for key in COLUMNS))


def _shown(figure: object) -> str:
    return f"{figure:.4g}" if isinstance(figure, int | float) else "-"
