"""Why the plan is what it is: sentences from the facts to the choice."""

from collections.abc import Iterator, Sequence

from planner.cost.memory import row_bytes
from planner.cut import Micro
from planner.evaluate import Evaluated, Search, Violation, load_of
from planner.method import Method
from planner.pareto import Round, simplicity
from planner.plan import Candidate
from planner.quality import (
    BITS_PER_PARAMETER,
    LABEL_FAMILIES,
    TIE_POINTS,
    method_quality,
    unranked,
)
from planner.runtime import untried
from planner.scenario import Scenario
from planner.schedule import LARGEST_FACTOR, REFERENCE_WIDTH, WIDTH_EXPONENT
from planner.units import amount, gib, many, points, seconds, signed

OTHER_BASES = ("nf4", "bf16", "fp32")
"""The base that a choice is compared with, the most telling first."""
AFTER_TIMES = {"first token": "to the first token", "per token": "per token"}
"""How a constraint reads after its time."""


def reasons(
    scenario: Scenario,
    weighed: Search,
    chosen: Evaluated,
    micro: Micro,
    rounds: Sequence[Round],
    candidate: Candidate,
) -> Iterator[str]:
    yield _assumptions(scenario)
    yield _feasibility(scenario, weighed, chosen, micro)
    yield _choice(scenario, chosen, rounds)
    if chosen.adapter.rank is not None:
        yield _rank(scenario, chosen)
    yield _format(scenario, weighed, chosen)
    yield _step(scenario, micro, candidate)
    yield _learning_rate(scenario, chosen, candidate)
    yield _export(scenario, chosen)
    new = untried(scenario.spec.serving.runtime, scenario.serving.kind)
    if new is not None:
        device = scenario.serving.kind.upper()
        yield f"Because {new}, its memory and latency on a {device} are assumed"


def _assumptions(scenario: Scenario) -> str:
    if not scenario.assumptions:
        return "Because the spec states everything that is asked, nothing is assumed about it"
    return f"Because the spec does not say otherwise: {'; '.join(scenario.assumptions)}"


def _feasibility(scenario: Scenario, weighed: Search, chosen: Evaluated, micro: Micro) -> str:
    together = ""
    if scenario.spec.serving.concurrency is not None:
        together = f" with {many(scenario.concurrency, 'sequence')} at a time"
    return (
        f"Because {len(weighed.feasible)} of {len(weighed.candidates)} candidates keep every "
        f"limit, and {chosen.describe()} needs {gib(micro.required_bytes)} of "
        f"{gib(scenario.training_budget_bytes)} to train and "
        f"{gib(chosen.serving.required_bytes)} of {gib(scenario.serving_budget_bytes)} to serve "
        f"{many(scenario.active_tenants, 'active tenant')}{together}, so it fits"
    )


def _choice(scenario: Scenario, chosen: Evaluated, rounds: Sequence[Round]) -> str:
    """The rounds of the choice as one derivation."""
    clauses = [
        f"{_criterion(step)} leaves {len(step.after)} of {len(step.before)}"
        for step in rounds
        if len(step.after) < len(step.before)
    ]
    steps = ", and ".join(clauses) or "no other candidate is open"
    return (
        f"Because the priority is {scenario.spec.priority}, and {steps}, so the choice is "
        f"{chosen.describe()}, {_expected(scenario, chosen)}"
    )


def _expected(scenario: Scenario, chosen: Evaluated) -> str:
    name = chosen.adapter.method.name
    if method_quality(name, scenario.family) is None:
        return f"of unknown quality: {unranked(name)}"
    return f"expected at {points(chosen.quality)} against LoRA on all linears of a 16-bit base"


def _criterion(step: Round) -> str:
    criterion = step.criterion
    if criterion.name == "quality":
        noise = " (a tie)" if criterion.tie == TIE_POINTS else ""
        best = criterion.natural(step.best)
        return f"quality within {criterion.tie:g} points{noise} of the best ({signed(best)})"
    if criterion.name == "memory":
        return (
            f"memory at the thriftiest step within {criterion.tie:.0%} of the budget of the least "
            f"({step.best:.0%})"
        )
    if criterion.name == "simplicity":
        return "being nearest to plain LoRA of rank 16 on all linears"
    return f"{criterion.name} within {criterion.tie:.0%} of the least"


def _rank(scenario: Scenario, chosen: Evaluated) -> str:
    labelled = scenario.family in LABEL_FAMILIES
    data = f"{scenario.examples:,} labels" if labelled else f"{scenario.data_tokens:,} tokens"
    brought = scenario.data_bits / 1e6
    trained = chosen.adapter.cost.trainable_parameters
    held = BITS_PER_PARAMETER * trained / 1e6
    enough = "enough" if held >= brought else "less than the data brings"
    why = "the spec pins it" if scenario.spec.pinned.rank else f"that is {enough}"
    size = chosen.adapter.method.size.replace("_", " ")
    return (
        f"Because {data} bring about {brought:,.2f} Mbit, and {trained:,} trained "
        f"parameters hold about {held:,.2f} Mbit, and {why}, so the {size} is {chosen.adapter.rank}"
    )


def _format(scenario: Scenario, weighed: Search, chosen: Evaluated) -> str:
    """The frozen base's format against the one it was weighed with."""
    base = f"so the base is {chosen.form.format}"
    if scenario.spec.pinned.format is not None:
        return f"Because the spec pins it, {base}"
    other = _twin(weighed, chosen)
    if other is None:
        return f"Because no other format is open to {chosen.adapter.method.name}, {base}"
    count = f"{scenario.architecture.parameters / 1e6:,.0f}M"
    loss = other.points - chosen.points
    saved = chosen.training_required_bytes - other.training_required_bytes
    if signed(loss) == signed(0.0) and gib(abs(saved)) == gib(0.0):
        return (
            f"Because {other.form.format} would change neither the expected quality of a {count} "
            f"model nor its training memory, {base}"
        )
    verb = "save" if saved >= 0 else "cost"
    return (
        f"Because {other.form.format} would change the expected quality of a {count} model by "
        f"{signed(loss)} points and {verb} {gib(abs(saved))} of training memory "
        f"at the least, {base}"
    )


def _twin(weighed: Search, chosen: Evaluated) -> Evaluated | None:
    """The same adapter on another base: the first of OTHER_BASES."""
    mine = chosen.adapter
    twins = [
        c
        for c in weighed.candidates
        if c.form.format != chosen.form.format
        and c.form.export == chosen.form.export
        and c.adapter.rank == mine.rank
        and c.adapter.targets == mine.targets
        and _recipe(c.adapter.method) == _recipe(mine.method)
    ]
    return min(
        twins,
        key=lambda c: (OTHER_BASES.index(c.form.format), c.training_required_bytes),
        default=None,
    )


def _recipe(found: Method) -> tuple[object, ...]:
    """What LoRA and QLoRA share."""
    return found.tensors, found.update, found.scaling


def _step(scenario: Scenario, micro: Micro, candidate: Candidate) -> str:
    whole = candidate.batch_size * candidate.gradient_accumulation
    kept = "keeping all" if candidate.checkpointing == "none" else "recomputing each block's"
    peak = micro.memory.peak_allocated_bytes
    return (
        f"Because a batch of {candidate.batch_size} of {candidate.sequence_length} tokens, "
        f"{kept} activations, peaks at {gib(peak)} allocated of "
        f"{gib(scenario.training_budget_bytes)}, and a step is {many(whole, 'example')}, so a step "
        f"is {many(candidate.gradient_accumulation, 'batch', 'batches')}"
    )


def _learning_rate(scenario: Scenario, chosen: Evaluated, candidate: Candidate) -> str:
    rate = f"so the learning rate is {candidate.learning_rate:g}"
    found = chosen.adapter.method
    if scenario.spec.training.learning_rate is not None:
        return f"Because the spec states it, {rate}"
    if found.scaling is None and not found.trains_base:
        return (
            f"Because {found.title} trains neither pairs nor whole weights, whose rates fall with "
            f"the width, its rate of {found.learning_rate:g} is kept, {rate}"
        )
    width = scenario.architecture.hidden
    capped = (REFERENCE_WIDTH / width) ** WIDTH_EXPONENT > LARGEST_FACTOR
    most = f" to at most {LARGEST_FACTOR:g} times" if capped else ""
    return (
        f"Because {found.title}'s rate of {found.learning_rate:g} is for a width of "
        f"{REFERENCE_WIDTH}, and rates fall with the width to the power {WIDTH_EXPONENT}{most}, "
        f"and this width is {width}, {rate}"
    )


def _export(scenario: Scenario, chosen: Evaluated) -> str:
    if chosen.form.export == "merged":
        whose = "the tenant" if scenario.tenants == 1 else f"each of {scenario.tenants:,} tenants"
        return f"Because {whose} is served from a model of its own, so export is merged"
    tenants = many(scenario.tenants, "tenant")
    row = row_bytes(chosen.adapter.cost, load_of(scenario))
    if scenario.tenants == 1:
        return (
            f"Because the tenant adds {amount(row)} to the bank and leaves the base as it is, for "
            "others to share, so the export is unmerged"
        )
    return (
        f"Because {tenants} can share one base, and a tenant adds "
        f"{amount(row)} to the bank, so the export is unmerged"
    )


def breaks(broken: Violation) -> str:
    """The broken limit as a verb phrase."""
    shown = gib if broken.unit == "bytes" else seconds
    verb = "needs" if broken.unit == "bytes" else "takes"
    what = AFTER_TIMES.get(broken.constraint, f"for {broken.constraint}")
    return f"{verb} {shown(broken.number)} {what} where the limit is {shown(broken.limit)}"


def infeasibility(scenario: Scenario, weighed: Search) -> str:
    """One sentence: the candidate that comes nearest, and what it breaks."""
    if not weighed.candidates:
        first = weighed.refusals[0]
        return f"no plan satisfies the spec: {first.subject}: {first.reason}"

    def distance(found: Evaluated) -> tuple[int, float]:
        excess = max(v.number / v.limit for v in found.violations)
        return (len(found.violations), round(excess, 2))

    least = min(map(distance, weighed.candidates))
    near = [found for found in weighed.candidates if distance(found) == least]
    nearest = min(near, key=lambda found: simplicity(scenario, found))
    broken = ", and ".join(breaks(v) for v in nearest.violations)
    return f"no plan satisfies the spec: the nearest, {nearest.describe()}, {broken}"
