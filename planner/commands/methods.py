"""List the methods."""

from collections.abc import Sequence

import click

from planner.method import (
    Dimension,
    Method,
    TensorSpec,
    buildable,
    buildable_method,
    method,
    methods,
)
from planner.options import as_json, print_card, print_json
from planner.runtime import RUNTIMES, refusal

SIDE = 4096
"""Conversions are stated for a linear of this width and height."""


@click.command("methods", epilog="Example: planner methods vera")
@click.argument("name", required=False)
@click.option("--buildable", "only_built", is_flag=True, help="Only those the compiler builds.")
@as_json
def command(*, name: str | None, only_built: bool, as_json: bool) -> None:
    """List the methods: paper, whether the compiler builds it, LoRA it converts to, formats.

    With a NAME, say of that one what it trains of each linear, its defaults and who serves it.
    """
    chosen = buildable() if only_built else methods()
    if name is not None:
        chosen = {name: buildable_method(name) if only_built else method(name)}
    if as_json:
        print_json(methods={name: _document(found) for name, found in chosen.items()})
        return
    if name is not None:
        _print_one(chosen[name])
        return
    click.echo(_line("method", "title", "paper", "builds", "as LoRA", "formats of the base"))
    for name, found in chosen.items():
        built = "yes" if found.builds else "no"
        row = (name, found.title, found.paper or "", built, _as_lora(found))
        click.echo(_line(*row, " ".join(found.formats)))


def _print_one(found: Method) -> None:
    """Tensors by their shapes; those that no step changes are said to be frozen."""
    said: dict[str, object] = {
        "paper": found.paper or "none",
        "compiler": "builds it" if found.builds else "does not build it",
        "ranks" if found.size == "rank" else found.size: _listed(found.ranks),
        "learning_rate": found.learning_rate,
        "optimizer": found.optimizer,
        "targets": _listed(found.targets),
        "formats": _listed(found.formats),
        "as LoRA": _as_lora(found),
    }
    for spec in found.tensors:
        shape = " x ".join(str(_length(dimension)) for dimension in spec.shape)
        said[spec.name] = f"{shape} for each {spec.scope}" + ("" if spec.trainable else ", frozen")
    for export, runtimes in _runtimes(found).items():
        said[f"served {export}"] = _listed(runtimes)
    print_card(found.title, said)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "none"


def _line(*cells: str) -> str:
    widths = (15, 19, 18, 8, 25, 0)
    return "".join(f"{cell:<{w}}" for cell, w in zip(cells, widths, strict=True)).rstrip()


def _as_lora(found: Method) -> str:
    converted = _conversion(found)
    if converted is None:
        return "never"
    if not converted["exact"]:
        return "lossy"
    before, after = converted["from_rank"], converted["to_rank"]
    if found.size != "rank":
        return f"rank {after} from {before}"
    return "same rank" if before == after else f"rank {after} from {before}"


def _conversion(found: Method) -> dict[str, object] | None:
    """The pair that a middling size makes on a square linear."""
    if found.converts_to is None:
        return None
    size = _middling(found)
    lengths = dict.fromkeys(("out", "in", "narrow", "wide"), SIDE)
    lengths |= {"rank": size or 0, found.size: size or 0}
    rank = found.converts_to.rank(lengths)
    return {"from_rank": size, "to_rank": rank, "exact": found.converts_to.exact}


def _middling(found: Method) -> int | None:
    return found.ranks[len(found.ranks) // 2] if found.ranks else None


def _runtimes(found: Method) -> dict[str, list[str]]:
    """Those that serve a decoder of LLaMA's family so, by export."""
    return {
        export: [
            runtime
            for runtime in RUNTIMES
            if refusal(runtime, "causal_lm", "llama", found, _middling(found), export) is None
        ]
        for export in found.serves
    }


def _document(found: Method) -> dict[str, object]:
    return {
        "title": found.title,
        "paper": found.paper,
        "builds": found.builds,
        "tensors": [_tensor(spec) for spec in found.tensors],
        "ranks": found.ranks,
        "size": found.size,
        "alphas": [found.default_alpha(r) for r in found.ranks] if found.default_alpha else None,
        "learning_rate": found.learning_rate,
        "optimizer": found.optimizer,
        "targets": found.targets,
        "formats": found.formats,
        "needs_weight": found.needs_weight,
        "trains_base": found.trains_base,
        "adds_tokens": found.adds_tokens,
        "forward_passes": found.forward_passes,
        "drops_input": found.drops_input,
        "serves": found.serves,
        "runtimes": _runtimes(found),
        "converts_to": _conversion(found),
        "peft_config": found.peft_config,
    }


def _tensor(spec: TensorSpec) -> dict[str, object]:
    """A tensor's fields; a length that is computed goes by the name of what computes it."""
    return {
        "name": spec.name,
        "shape": [_length(dimension) for dimension in spec.shape],
        "initializer": spec.initializer,
        "initial_value": spec.initial_value,
        "trainable": spec.trainable,
        "scope": spec.scope,
        "seeded": spec.seeded,
        "training_only": spec.training_only,
        "learning_rate_multiplier": spec.learning_rate_multiplier,
        "roles": spec.roles,
        "share": spec.share,
    }


def _length(dimension: Dimension) -> int | str:
    return dimension.__name__ if callable(dimension) else dimension
