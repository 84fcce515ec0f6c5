"""Write a first spec to fill in."""

from pathlib import Path
from typing import get_args

import click

from planner import catalog
from planner.builds import check_builds
from planner.documents import dump, validated, write
from planner.errors import UsageError
from planner.options import as_json
from planner.resolve import resolve, task_of
from planner.scenario import Scenario
from planner.spec import Spec, Task


@click.command(
    "init",
    epilog="Example: planner init spec.json --model llama-3.1-8b --vram 24 --tenants 20",
)
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Catalogue name, config.json or its folder.")
@click.option("--task", type=click.Choice(get_args(Task)), help="Default: what the model is for.")
@click.option("--vram", "vram_gib", type=float, required=True, help="GiB for training.")
@click.option("--hardware", help="Catalogue name of the training device.")
@click.option("--serving", help="Catalogue name of the serving device.")
@click.option("--tenants", type=int, default=1, show_default=True)
@click.option("--force", is_flag=True, help="Replace SPEC if it exists.")
@as_json
def command(
    *,
    spec: Path,
    model: str,
    task: str | None,
    vram_gib: float,
    hardware: str | None,
    serving: str | None,
    tenants: int,
    force: bool,
    as_json: bool,
) -> None:
    """Write SPEC with what is given, and every assumption made for the rest as its value."""
    if spec.exists() and not force:
        raise UsageError(f"{spec} exists", hint="choose another name, or give --force")
    document = {
        "model": model,
        "task": task or task_of(catalog.model(model).architecture),
        "vram_gib": vram_gib,
        "training": {"hardware": hardware},
        "serving": {"hardware": serving, "tenants": tenants},
    }
    scenario = resolve(validated(Spec, document, "init"))
    stated = scenario.spec.model_dump()
    stated["family"] = scenario.family
    stated["serving"] |= {
        "active_tenants": scenario.active_tenants,
        "context_length": scenario.context_length,
        "prompt_tokens": scenario.prompt_tokens,
    }
    stated["data"]["examples"] = scenario.examples
    if scenario.spec.task != "image_classification":  # whose tokens are the model's, not the data's
        stated["data"]["mean_tokens"] = scenario.mean_tokens
    filled = validated(Spec, stated, "init")
    text = filled.model_dump_json(indent=2, exclude_none=True) + "\n"
    write(spec, text)
    if as_json:
        click.echo(dump(filled), nl=False)
    else:
        click.echo(f"wrote {spec}; next: planner recommend {spec}{_option(scenario)}")


def _option(scenario: Scenario) -> str:
    """What `recommend` asks for where the compiler does not build the task or the family."""
    try:
        check_builds(scenario)
    except UsageError:
        return " --include-unbuildable"
    return ""
