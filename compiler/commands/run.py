"""Answer prompts, or label texts, with a tenant per row of one batch."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import click

from compiler.manifest import BASE
from compiler.session import Classification, Generation, Session
from compiler.tokenizer import Template
from planner.errors import UsageError

SCHEMA_VERSION = 1

Result = Generation | Classification


@click.command("run")
@click.argument("folder", metavar="ARTIFACT", type=click.Path(path_type=Path))
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option(
    "--tenant",
    "tenants",
    metavar="NAME",
    multiple=True,
    help="Who answers: once for all prompts, or once for each in turn. Default: the base model.",
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, metavar="N"
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="For a temperature above 0.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End an answer at this text.")
@click.option(
    "--template",
    type=click.Choice(["chat", "text"]),
    help="How to dress the prompts. Default: as the tenant was trained.",
)
@click.option(
    "--threads", type=click.IntRange(1, os.cpu_count()), help="Default: ONNX Runtime's choice."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    folder: Path,
    prompts: tuple[str, ...],
    tenants: tuple[str, ...],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    stop: tuple[str, ...],
    template: Template | None,
    threads: int | None,
    *,
    as_json: bool,
) -> None:
    """Answer prompts with a tenant per row of one batch; a classifier labels them.

    \b
    One tenant, and then two tenants and the base model in one batch:
        compiler run faq/ --tenant acme "How do I pour concrete?"
        compiler run faq/ --tenant acme "Hello" --tenant zeta "Hello" --tenant base "Hello"
    """
    rows, texts = pair(tenants, prompts)
    started = perf_counter()
    session = Session.open(folder, threads=threads, tenants=named(rows))
    loaded = perf_counter()
    results: list[Result] = []
    if session.manifest.task == "sequence_classification":
        results += session.classify(texts, rows)
    else:
        results += session.generate(
            texts,
            rows,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=stop,
            template=template,
        )
    if as_json:
        click.echo(_document(session, texts, results, (loaded - started, perf_counter() - loaded)))
        return
    for each in results:
        click.echo(line(each) if len(results) == 1 else f"{each.tenant}: {line(each)}")


def _document(
    session: Session, texts: Sequence[str], results: Sequence[Result], seconds: tuple[float, float]
) -> str:
    described = [{"prompt": t, **asdict(r)} for t, r in zip(texts, results, strict=True)]
    document = {
        "schema_version": SCHEMA_VERSION,
        "task": session.manifest.task,
        "load_seconds": seconds[0],
        "run_seconds": seconds[1],
        "results": described,
    }
    return json.dumps(document, indent=2)


def pair(tenants: Sequence[str], prompts: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """The tenant and prompt of each row; a single tenant or prompt serves all rows."""
    if len(tenants) <= 1:
        everyone = tenants[0] if tenants else None
        return [everyone] * len(prompts), list(prompts)
    if len(prompts) == 1:
        return [*tenants], [*prompts] * len(tenants)
    if len(tenants) != len(prompts):
        raise UsageError(
            f"{len(tenants)} tenants are named for {len(prompts)} prompts",
            hint="name one tenant, or one before each prompt",
        )
    return [*tenants], [*prompts]


def named(rows: Sequence[str | None]) -> list[str]:
    """The tenants that must be loaded."""
    return [row for row in dict.fromkeys(rows) if row not in (None, BASE)]


def line(result: Result) -> str:
    if isinstance(result, Generation):
        return result.text
    cut = " (text cut to the model's context)" if result.truncated else ""
    return f"{result.label} {result.probability:.4f}{cut}"
