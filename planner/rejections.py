"""Why each alternative was not chosen: one line per method, and per other setting of the choice."""

from collections.abc import Iterator, Sequence

from planner.evaluate import Evaluated, Search
from planner.explain import breaks
from planner.forms import Refusal
from planner.pareto import Round, memory_share
from planner.plan import Rejection
from planner.quality import TIE_POINTS
from planner.scenario import Scenario
from planner.units import seconds, signed


def rejections(
    scenario: Scenario, weighed: Search, chosen: Evaluated, rounds: Sequence[Round]
) -> Iterator[Rejection]:
    """Refused choices first, then the best of each alternative.

    That another method cannot take one format or export is left out where it was weighed in others.
    """
    others = {c.adapter.method.name for c in weighed.candidates} - {chosen.adapter.method.name}
    for refused in weighed.refusals:
        if refused.subject.partition(",")[0] not in others:
            yield _refused(refused)
    for other in _alternatives(scenario, weighed, chosen):
        if other.violations:
            yield _infeasible(other)
        else:
            yield _outdone(scenario, other, chosen, rounds)


def _alternatives(scenario: Scenario, weighed: Search, chosen: Evaluated) -> list[Evaluated]:
    """The strongest candidate of every group."""
    groups: dict[tuple[str, str], tuple[tuple[int, float, float], Evaluated]] = {}
    for other in weighed.candidates:
        key = _group(other, chosen)
        if key is None:
            continue
        strength = _strength(scenario, other)
        if key not in groups or strength < groups[key][0]:
            groups[key] = strength, other
    return [groups[key][1] for key in sorted(groups)]


def _group(other: Evaluated, chosen: Evaluated) -> tuple[str, str] | None:
    """What sets the alternative apart: its method, or the one setting in which it differs."""
    if other.adapter.method.name != chosen.adapter.method.name:
        return ("method", other.adapter.method.name)
    settings = {
        "rank": (other.adapter.rank, chosen.adapter.rank),
        "targets": (other.adapter.targets, chosen.adapter.targets),
        "format": (other.form.format, chosen.form.format),
        "export": (other.form.export, chosen.form.export),
        "precision": (other.form.precision, chosen.form.precision),
    }
    differing = [name for name, (theirs, ours) in settings.items() if theirs != ours]
    if len(differing) != 1:
        return None
    return (differing[0], str(settings[differing[0]][0]))


def _strength(scenario: Scenario, other: Evaluated) -> tuple[int, float, float]:
    """Fewer broken limits, then better quality, then less memory."""
    points = round(other.points, 1)
    return (len(other.violations), -points, memory_share(scenario, other))


def _refused(refusal: Refusal) -> Rejection:
    return Rejection.model_construct(
        candidate=refusal.subject,
        constraint=refusal.constraint,
        number=None,
        limit=None,
        unit="",
        reason=f"Because {refusal.reason}",
    )


def _infeasible(other: Evaluated) -> Rejection:
    broken = other.violations[0]
    return Rejection.model_construct(
        candidate=other.describe(),
        constraint=broken.constraint,
        number=broken.number,
        limit=broken.limit,
        unit=broken.unit,
        reason=f"Because it {breaks(broken)}",
    )


def _outdone(
    scenario: Scenario, other: Evaluated, chosen: Evaluated, rounds: Sequence[Round]
) -> Rejection:
    """The first criterion that put it aside; a tie to the end is a coin's toss of order."""
    lost = next(
        (step for step in rounds if step.criterion.score(scenario, other) > step.limit),
        rounds[-1],
    )
    criterion = lost.criterion
    return Rejection.model_construct(
        candidate=other.describe(),
        constraint=criterion.name,
        number=criterion.natural(criterion.score(scenario, other)),
        limit=criterion.natural(lost.limit),
        unit=criterion.unit,
        reason=_why(scenario, other, chosen, rounds[: rounds.index(lost) + 1]),
    )


def _why(scenario: Scenario, other: Evaluated, chosen: Evaluated, rounds: Sequence[Round]) -> str:
    """By the last of the rounds, which the other did not survive."""
    *survived, lost = rounds
    gap = other.points - chosen.points
    if lost.criterion.name == "quality":
        best = lost.criterion.natural(lost.best)
        return (
            f"Because it is expected {signed(gap)} points from the choice, and only "
            f"{lost.criterion.tie:g} points below the best ({signed(best)}) count as near"
        )
    near = f"{signed(gap)} points from the choice is a tie"
    if gap > TIE_POINTS:
        near = f"{signed(gap)} points from the choice is given up for the priority"
    elif gap < -TIE_POINTS:
        near = f"it is expected {signed(gap)} points from the choice"
    theirs, ours = (lost.criterion.score(scenario, c) for c in (other, chosen))
    if lost.criterion.name == "memory":
        compared = (
            f"it takes {theirs:.0%} of the memory budget at its thriftiest step and the choice "
            f"{ours:.0%}"
        )
    elif lost.criterion.name == "simplicity":
        simpler = theirs > ours
        compared = _tied(survived) + (
            "the choice is the simpler" if simpler else "the choice, as simple, came first"
        )
    elif lost.criterion.name == "latency":
        times = [seconds(lost.criterion.natural(score)) for score in (theirs, ours)]
        compared = f"it takes {times[0]} and the choice {times[1]}"
    else:
        compared = f"its {lost.criterion.name} is larger"
    return f"Because {near}, and {compared}"


def _tied(rounds: Sequence[Round]) -> str:
    """What was weighed besides quality, and where it is known: best scores of 0 are unknown."""
    names = [s.criterion.name for s in rounds if s.criterion.name != "quality" and s.best]
    if not names:
        return ""
    return f"{' and '.join(names)} {'ties' if len(names) == 1 else 'tie'} as well, and "
