"""List the hardware of the catalogue, and this machine once it is calibrated."""

from typing import cast

import click

from planner import catalog
from planner.options import as_json, print_card, print_json

COLUMNS = {
    "memory_gib": "GiB",
    "bandwidth_gb_per_second": "GB/s",
    "fp32_tflops": "fp32",
    "bf16_tflops": "bf16",
    "fp16_tflops": "fp16",
    "int8_tops": "int8",
    "price_per_hour_usd": "USD/h",
}


@click.command("hardware", epilog="Example: planner hardware l4")
@click.argument("name", required=False)
@as_json
def command(*, name: str | None, as_json: bool) -> None:
    """List the hardware of the catalogue, and this machine once it is calibrated.

    Rates are in 1e12 operations a second, dense; "-" is unknown or none. With a NAME, say of that
    one which it is and where every figure is from, as --json does of all.
    """
    if name is not None:
        catalog.hardware(name)
    local = _local() if name in (None, "local") else {}
    chosen = catalog.names("hardware") if name is None else {name} - set(local)
    rows = {each: catalog.entry("hardware", each) for each in chosen} | local
    if as_json:
        print_json(hardware=rows)
        return
    if name is not None:
        _print_one(rows[name])
        return
    click.echo(f"{'':<24}" + "".join(f"{title:>9}" for title in COLUMNS.values()))
    for name, row in rows.items():
        click.echo(f"{name:<24}" + "".join(f"{_shown(row[key]):>9}" for key in COLUMNS))


def _local() -> dict[str, catalog.Json]:
    """This machine as an entry of the catalogue, if it is calibrated."""
    from planner.calibration import stored  # noqa: PLC0415, help needs none of it

    measured = stored()
    if measured is None:
        return {}
    source = f"measured {measured.measured_at} by planner calibrate"
    figures = measured.hardware.model_dump(exclude={"measured"})
    sources = dict.fromkeys(COLUMNS, source)
    titled = {"name": "local", "title": measured.machine.processor}
    return {"local": {**titled, **figures, "sources": sources}}


def _print_one(row: catalog.Json) -> None:
    sources = cast(dict[str, str], row["sources"])
    said = {key: f"{_shown(row[key]):<8}{sources[key]}" for key in COLUMNS}
    print_card(f"{row['title']}, {str(row['kind']).upper()}", said)


def _shown(figure: object) -> str:
    return f"{figure:.4g}" if isinstance(figure, int | float) else "-"
