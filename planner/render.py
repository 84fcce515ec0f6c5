"""A plan as text: the choice, why, what was not chosen and why, and the figures."""

import textwrap
from collections.abc import Callable, Iterator, Mapping

from planner.method import method
from planner.plan import Figure, Plan
from planner.units import amount, seconds, signed

WIDTH = 100


def render(plan: Plan) -> str:
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    yield f"{plan.model.name}: {plan.task}, {plan.model.parameters / 1e6:,.1f}M parameters"
    yield ""
    yield from _choice(plan)
    yield ""
    yield "Why"
    for reason in plan.reasons:
        yield from _wrapped(reason)
    yield ""
    yield "Not chosen"
    for rejection in plan.rejections:
        yield from _wrapped(f"{rejection.candidate}: {rejection.reason}")
    yield ""
    yield "Figures"
    yield from figure_lines(plan.figures)


def figure_lines(figures: Mapping[str, Figure]) -> Iterator[str]:
    for name, figure in figures.items():
        yield f"  {label(name):<42}{figure_value(name, figure)}"


def _choice(plan: Plan) -> Iterator[str]:
    candidate, training = plan.candidate, plan.training
    if not method(candidate.method).builds:
        yield "  (the compiler does not build this method yet)"
    chosen = method(candidate.method)
    size = ""
    if candidate.rank is not None:
        alpha = "" if candidate.alpha is None else f", alpha {candidate.alpha:g}"
        size = f", {chosen.sized(candidate.rank)}{alpha}"
    where = f", on {', '.join(candidate.targets)}" if candidate.targets else ""
    steps = f"{training.max_steps} steps" if training.max_steps else f"{training.epochs:g} epochs"
    accumulated = candidate.gradient_accumulation
    pieces = f" x {accumulated} accumulated" if accumulated > 1 else ""
    yield f"  method    {chosen.title}{size}{where}"
    yield f"  base      {candidate.format}, arithmetic in {candidate.compute}"
    yield (
        f"  step      batch {candidate.batch_size}{pieces}, {candidate.sequence_length} tokens, "
        f"checkpointing {candidate.checkpointing}, {candidate.optimizer}"
    )
    yield f"  training  learning rate {candidate.learning_rate:g}, {steps}, seed {training.seed}"
    yield f"  export    {candidate.export}, {candidate.precision}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ")


def label(name: str) -> str:
    for suffix in ("_bytes", "_seconds", "_points"):
        name = name.removesuffix(suffix)
    return name.replace("_", " ")


def figure_value(name: str, figure: Figure) -> str:
    if figure.value is None:
        return f"unknown ({figure.source})"
    show: Callable[[float], str] = _count
    if name.endswith("_bytes"):
        show = amount
    elif name.endswith("_seconds"):
        show = seconds
    elif name.endswith("_points"):
        show = signed
    elif "usd" in name:
        show = _dollars
    band = ""
    if figure.low is not None and figure.high is not None:
        band = f" ({show(figure.low)} to {show(figure.high)})"
    return f"{show(figure.value)}{band}, {figure.evidence}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _dollars(value: float) -> str:
    return f"${value:,.2f}" if value >= 1 else f"${value:.2g}"
