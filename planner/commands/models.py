"""List the models of the catalogue."""

from collections import Counter
from pathlib import Path

import click

from planner import catalog
from planner.architecture import Architecture
from planner.options import as_json, print_card, print_json

COLUMNS = "{:<20}{:<27}{:<13}{:<17}{:<7}{:>16}  {}"


@click.command("models", epilog="Example: planner models ./config.json")
@click.argument("name", required=False)
@as_json
def command(*, name: str | None, as_json: bool) -> None:
    """List the models of the catalogue, whether the compiler builds them, and their parameters.

    With a NAME, of the catalogue or of a config.json or its folder, say what the planner sees of
    that one.
    """
    rows = {each: _row(each) for each in (catalog.names("models") if name is None else (name,))}
    if as_json:
        print_json(models=rows)
        return
    if name is not None:
        _print_one(rows[name], catalog.model(name).architecture)
        return
    heads = ("name", "title", "family", "kind", "builds", "parameters", "active")
    click.echo(COLUMNS.format(*heads).rstrip())
    for name, row in rows.items():
        total, active = row["parameters"], row["active_parameters"]
        built = "no" if row["unbuilt"] else "yes"
        cells = (name, row["title"], row["family"], row["kind"], built, f"{total:,}")
        click.echo(COLUMNS.format(*cells, f"{active:,}" if active != total else "").rstrip())


def _row(name: str) -> catalog.Json:
    """The catalogue's entry, if the model is of it, and what its config says."""
    model = catalog.model(name)
    found = model.architecture
    stated: catalog.Json = {"name": model.name, "title": model.name}
    if not Path(name).exists() or name in catalog.names("models"):
        stated = catalog.entry("models", model.name)
    return stated | {
        "family": found.model_type,
        "kind": found.kind,
        "unbuilt": found.unbuilt,
        "parameters": found.parameters,
        "active_parameters": found.active_parameters,
    }


def _print_one(row: catalog.Json, found: Architecture) -> None:
    """Also the roles, which are what `targets` may name."""
    active = f", {found.active_parameters:,} of them active"
    roles = Counter((each.role, each.out_features, each.in_features) for each in found.targets)
    encoder = f", and {found.encoder_layers} of the encoder" if found.encoder_layers else ""
    said: dict[str, object] = {
        "family": f"{found.model_type}, {found.kind}",
        "parameters": f"{found.parameters:,}"
        + (active if found.active_parameters != found.parameters else ""),
        "compiler": f"does not build it: {found.unbuilt}" if found.unbuilt else "builds it",
        "layers": f"{found.layers}{encoder}, {found.hidden} wide",
        "heads": f"{found.heads}, {found.kv_heads} of keys and values, {found.head_dim} wide",
        "positions": found.positions or "any",
        "vocabulary": found.vocab or "none",
    }
    for (role, out_features, in_features), number in roles.items():
        alike = f"{number} of {out_features} x {in_features}"
        said[role] = f"{said[role]}, {alike}" if role in said else alike
    if "source" in row:
        said["source"] = row["source"]
    print_card(str(row["title"]), said)
