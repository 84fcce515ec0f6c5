"""Print what one explicit candidate costs, part by part."""

from pathlib import Path
from typing import get_args

import click

from planner import catalog
from planner.case import Case, Program, served_format
from planner.documents import dump, validated
from planner.estimation import Estimate, estimate
from planner.method import method
from planner.options import as_json
from planner.render import figure_lines
from planner.resolve import DEFAULT_EXAMPLES
from planner.runtime import unloadable
from planner.schedule import DEFAULT_EPOCHS
from planner.spec import Attention, Checkpointing, Compute, Format, Loss, Optimizer, Runtime


def _choice(values: object) -> click.Choice[str]:
    return click.Choice(get_args(values))


COUNT = click.IntRange(min=1)


@click.command(
    "estimate",
    epilog="Example: planner estimate --model llama-3.1-8b --method lora --rank 16 --format nf4 "
    "--batch 4 --sequence 768 --hardware l4",
)
@click.option("--model", required=True, help="Catalogue name, config.json or its folder.")
@click.option("--method", default="lora", show_default=True, help="See `planner methods`.")
@click.option("--rank", type=COUNT, help="Default: the method's rank nearest to 16.")
@click.option(
    "--targets",
    help="Roles, all-linear (without experts, their router and the head) or module-name patterns, "
    "with commas.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice([*get_args(Format), "nf4_single"]),
    default="bf16",
    show_default=True,
    help="nf4_single is nf4 without double quantisation.",
)
@click.option("--compute", type=_choice(Compute), help="Default: fp32 on an fp32 base, else bf16.")
@click.option("--adapter-dtype", type=_choice(Compute), help="Default: fp32.")
@click.option("--batch", "batch_size", type=COUNT, default=1, show_default=True)
@click.option("--accumulation", "gradient_accumulation", type=COUNT, default=1, show_default=True)
@click.option("--sequence", "sequence_length", type=COUNT, help="Default: 1024, or the model's.")
@click.option("--checkpointing", type=_choice(Checkpointing), default="none", show_default=True)
@click.option(
    "--attention", type=_choice(Attention), help="Default: flash, or full without a kernel for it."
)
@click.option("--optimizer", type=_choice(Optimizer), default="adamw", show_default=True)
@click.option("--loss", type=_choice(Loss), default="chunked", show_default=True)
@click.option("--framework", type=_choice(Program), help="Whose step it is; default by loss.")
@click.option("--dropout", type=float, default=0.0, show_default=True, help="Of the adapter.")
@click.option("--labels", type=COUNT, help="Classes of a classifier.")
@click.option("--hardware", help="Catalogue name; without it times are unknown.")
@click.option("--runtime", type=_choice(Runtime), default="paretune", show_default=True)
@click.option("--export", type=click.Choice(["unmerged", "merged"]), help="Default: unmerged.")
@click.option("--precision", type=click.Choice(["exact", "fast"]), default="exact")
@click.option("--tenants", type=COUNT, default=1, show_default=True)
@click.option("--active-tenants", type=COUNT, help="Default: all.")
@click.option("--slots", type=COUNT, help="Rows of the bank; default: one per active tenant.")
@click.option("--concurrency", type=COUNT, help="Sequences that decode together; default: slots.")
@click.option("--context", "context_length", type=COUNT, help="Tokens served per sequence.")
@click.option("--prompt", "prompt_tokens", type=COUNT, help="Tokens of a prompt.")
@as_json
def command(*, targets: str | None, format_: str, as_json: bool, **options: object) -> None:
    """Print the cost of one candidate: memory by part, parameters, serving and latency."""
    document = {name: value for name, value in options.items() if value is not None}
    if targets is not None:
        document["targets"] = [target.strip() for target in targets.split(",")]
    found = estimate(validated(Case, {**document, "format": format_}, "estimate"))
    if as_json:
        click.echo(dump(found), nl=False)
    else:
        click.echo(_text(found), nl=False)


def _text(found: Estimate) -> str:
    case = found.case
    model = case.model if isinstance(case.model, str) else "config"
    rank = f" {method(case.method).sized(case.rank)}" if case.rank else ""
    head = (
        f"{Path(model).name}: {case.method}{rank}, {case.format} base, "
        f"batch {case.batch_size} x {case.sequence_length} tokens, arithmetic in {case.compute}"
    )
    kind = "gpu" if case.hardware is None else catalog.hardware(case.hardware).kind
    unloaded = unloadable(case.runtime, kind, served_format(case.format))
    though = f", though {unloaded}" if unloaded else ""
    notes = (
        f"tensors are kept as {case.framework} keeps them; "
        f"served {case.export} by {case.runtime}{though}",
        "parts are each at their own largest, the peak is at one moment",
        f"the total is of {DEFAULT_EXAMPLES:,} examples, {DEFAULT_EPOCHS:g} epochs",
    )
    lines = [head, *(f"  ({note})" for note in notes), "", *figure_lines(found.figures)]
    return "\n".join(lines) + "\n"
