"""What would make an infeasible spec feasible; each is tried before it is offered."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, islice

from pydantic_core import ValidationError

from planner import catalog
from planner.errors import Relaxation, UsageError
from planner.evaluate import Evaluated, Search, Violation, is_feasible, search
from planner.explain import AFTER_TIMES
from planner.resolve import resolve
from planner.runtime import RUNTIMES
from planner.scenario import GIB, Scenario
from planner.spec import Spec
from planner.units import many

OFFERED = 3
PARTS = (2, 4, 8, 16, 32)
"""Lengths and tenants are divided by these, the gentlest first."""
LEAST_TOKENS = 16
TIME_KEYS = {"first token": "first_token_ms", "per token": "per_token_ms"}


NOTHING = Relaxation("", {})


def said(found: Sequence[Relaxation]) -> str:
    """The relaxations as one sentence."""
    if not found:
        return "nothing that was tried makes it feasible; another model might"
    return f"feasible with {', or '.join(relaxation.text for relaxation in found)}"


def nearest(
    scenario: Scenario, weighed: Search, *, unbuildable: bool = False
) -> Iterator[tuple[Relaxation, Spec]]:
    """At most three changes of different kinds with their specs, every one feasible."""

    def feasible(changes: Iterable[Relaxation]) -> Iterator[tuple[Relaxation, Spec]]:
        for change in changes:
            spec = applied(scenario.spec, change)
            if spec is not None and _feasible(spec, unbuildable=unbuildable):
                yield change, spec

    def found() -> Iterator[tuple[Relaxation, Spec]]:
        """Another model comes last: what it answers is not what was asked."""
        suffices = False
        for changes in _kinds(scenario, weighed):
            for each in islice(feasible(changes), 1):
                suffices = True
                yield each
        if not suffices:
            yield from feasible(_pairs(scenario, weighed, unbuildable=unbuildable))
        yield from islice(feasible(_smaller_models(scenario)), 1)

    return islice(found(), OFFERED)


def _pairs(scenario: Scenario, weighed: Search, *, unbuildable: bool) -> Iterator[Relaxation]:
    """A smaller load or a choice left open, with the least memory and time that then suffice."""
    if not weighed.candidates:
        yield from _several_unpinned(scenario)
    broken = _broken(weighed)
    loads = []
    if broken - {"training memory"}:
        loads += [*_fewer_tenants(scenario)[:1], *_fewer_sequences(scenario)[:1]]
        loads += _less_context(scenario)[:1]
    if "training memory" in broken:
        loads += _shorter(scenario)[:1]
    for load in (*loads, *_unpinned(scenario), NOTHING):
        spec = applied(scenario.spec, load)
        if spec is None:
            continue
        lighter = resolve(spec)
        found = search(lighter, unbuildable=unbuildable)
        for more in (
            *_more_vram(lighter, found),
            *_more_serving_memory(lighter, found),
            *_more_of_all(lighter, found),
        ):
            text = f"{load.text} and {more.text}" if load.text else more.text
            yield Relaxation(text, load.updates | more.updates)


def applied(spec: Spec, change: Relaxation) -> Spec | None:
    """The changed spec, or None where the change makes no spec."""
    document = spec.model_dump()
    for path, value in change.updates.items():
        *parents, last = path.split(".")
        section = document
        for parent in parents:
            section = section[parent]
        section[last] = value
    try:
        return Spec.model_validate(document)
    except ValidationError:
        return None


def _feasible(spec: Spec, *, unbuildable: bool) -> bool:
    try:
        return is_feasible(resolve(spec), unbuildable=unbuildable)
    except UsageError:
        return False


def _kinds(scenario: Scenario, weighed: Search) -> Iterator[list[Relaxation]]:
    """Kinds of change to the same model; of each the first feasible one counts."""
    broken = _broken(weighed)
    yield _unpinned(scenario)
    yield _more_vram(scenario, weighed)
    if "training memory" in broken:
        yield _shorter(scenario)
    yield _more_serving_memory(scenario, weighed)
    for constraint, key in TIME_KEYS.items():
        yield _slower(weighed, constraint, key)
    if broken - {"training memory"}:
        yield _fewer_tenants(scenario)
        yield _fewer_sequences(scenario)
        yield _less_context(scenario)
    if any(refused.constraint == "runtime" for refused in weighed.refusals):
        yield _other_runtimes(scenario)


def _broken(weighed: Search) -> set[str]:
    """The constraints that some candidate breaks."""
    return {v.constraint for c in weighed.candidates for v in c.violations}


def _unpinned(scenario: Scenario) -> list[Relaxation]:
    pinned = scenario.spec.pinned.model_dump(exclude_none=True)
    return [
        Relaxation(f"pinned.{name} left open", {f"pinned.{name}": None})
        for name in pinned
        if name != "alpha"
    ]


def _several_unpinned(scenario: Scenario) -> Iterator[Relaxation]:
    """Two pins, then all of them."""
    keys = [key for alone in _unpinned(scenario) for key in alone.updates]
    for several in (*combinations(keys, 2), keys):
        yield Relaxation(f"{' and '.join(several)} left open", dict.fromkeys(several))


def _breaking_only(weighed: Search, allowed: set[str]) -> list[Evaluated]:
    return [c for c in weighed.candidates if {v.constraint for v in c.violations} <= allowed]


def _more_vram(scenario: Scenario, weighed: Search) -> list[Relaxation]:
    """The least that suffices; it is the serving device's memory too where none is named."""
    alone = scenario.spec.serving.hardware is not None
    device = scenario.training
    shared = not alone and scenario.spec.serving.memory_gib is None
    named = scenario.spec.training.hardware is not None
    allowed = {"training memory", "serving memory"} if shared else {"training memory"}
    needs = [
        max(c.training_required_bytes, c.serving.required_bytes if shared else 0.0)
        for c in _breaking_only(weighed, allowed)
    ]
    if not needs:
        return []
    gib = max(math.ceil(min(needs) / GIB), math.floor(scenario.spec.vram_gib) + 1)
    updates: dict[str, object] = {"vram_gib": gib}
    if named and gib > device.memory_gib:
        updates["training.hardware"] = device.model_dump() | {"memory_gib": gib}
    more = gib - scenario.spec.vram_gib
    return [Relaxation(f"{more:.3g} GiB more VRAM ({gib} GiB)", updates)]


def _more_serving_memory(scenario: Scenario, weighed: Search) -> list[Relaxation]:
    needs = [c.serving.required_bytes for c in _breaking_only(weighed, {"serving memory"})]
    if not needs:
        return []
    gib = math.ceil(min(needs) / GIB)
    device = scenario.serving.model_dump()
    device["memory_gib"] = max(gib, scenario.serving.memory_gib)
    updates: dict[str, object] = {"serving.memory_gib": gib, "serving.hardware": device}
    return [Relaxation(f"{gib} GiB of serving memory", updates)]


def _more_of_all(scenario: Scenario, weighed: Search) -> list[Relaxation]:
    """Every limit that the nearest candidate breaks, moved to what it needs."""
    if not weighed.candidates:
        return []
    nearest = min(weighed.candidates, key=_excess)
    updates: dict[str, object] = {}
    texts = []
    for broken in nearest.violations:
        text, update = _moved(scenario, broken)
        texts.append(text)
        updates |= update
    return [Relaxation(" and ".join(texts), updates)]


def _excess(found: Evaluated) -> float:
    """Log of the factor by which all its limits together are broken."""
    return sum(math.log(v.number / v.limit) for v in found.violations)


def _moved(scenario: Scenario, broken: Violation) -> tuple[str, dict[str, object]]:
    """The limit at what is needed, in words and as values of the spec's keys."""
    if broken.unit == "seconds":
        milliseconds = math.ceil(broken.number * 1000)
        key = TIME_KEYS[broken.constraint]
        text = f"{milliseconds} ms {AFTER_TIMES[broken.constraint]}"
        return text, {f"serving.{key}": milliseconds}
    gib = math.ceil(broken.number / GIB)
    training = broken.constraint == "training memory"
    place, device = ("training", scenario.training) if training else ("serving", scenario.serving)
    size = max(gib, device.memory_gib)
    updates: dict[str, object] = {
        "vram_gib" if training else "serving.memory_gib": gib,
        f"{place}.hardware": device.model_dump() | {"memory_gib": size},
    }
    return f"{gib} GiB of {'VRAM' if training else 'serving memory'}", updates


def _other_runtimes(scenario: Scenario) -> list[Relaxation]:
    mine = scenario.spec.serving.runtime
    return [
        Relaxation(f"runtime {name}", {"serving.runtime": name})
        for name in RUNTIMES
        if name != mine
    ]


def _smaller_models(scenario: Scenario) -> list[Relaxation]:
    """Those of the catalogue of the same family, the largest first."""
    mine = scenario.architecture
    sizes = {
        name: int(str(entry["published_parameters"]))
        for name in catalog.names("models")
        if catalog.config_of(entry := catalog.entry("models", name))["model_type"]
        == mine.model_type
    }
    smaller = [name for name in sizes if sizes[name] < mine.parameters]
    smaller.sort(key=lambda name: -sizes[name])
    return [Relaxation(f"the model {name}", {"model": name}) for name in smaller]


def _slower(weighed: Search, constraint: str, key: str) -> list[Relaxation]:
    times = [v.number for c in _breaking_only(weighed, {constraint}) for v in c.violations]
    if not times:
        return []
    milliseconds = math.ceil(min(times) * 1000)
    text = f"{milliseconds} ms {AFTER_TIMES[constraint]}"
    return [Relaxation(text, {f"serving.{key}": milliseconds})]


def _shorter(scenario: Scenario) -> list[Relaxation]:
    lengths = [scenario.sequence_length // part for part in PARTS]
    return [
        Relaxation(f"sequence {length}", {"pinned.sequence_length": length})
        for length in lengths
        if length >= LEAST_TOKENS
    ]


def _fewer_tenants(scenario: Scenario) -> list[Relaxation]:
    counts = [scenario.active_tenants // part for part in PARTS]
    return [
        Relaxation(many(count, "active tenant"), {"serving.active_tenants": count})
        for count in counts
        if count >= 1
    ]


def _fewer_sequences(scenario: Scenario) -> list[Relaxation]:
    """Where the spec states them; else they follow the tenants."""
    if scenario.spec.serving.concurrency is None:
        return []
    counts = [scenario.concurrency // part for part in PARTS]
    return [
        Relaxation(f"{many(count, 'sequence')} at a time", {"serving.concurrency": count})
        for count in counts
        if count >= 1
    ]


def _less_context(scenario: Scenario) -> list[Relaxation]:
    """A prompt can be cut to it; a classifier's request is read whole."""
    least = LEAST_TOKENS if scenario.causal else scenario.prompt_tokens
    contexts = [scenario.context_length // part for part in PARTS]
    return [
        Relaxation(
            f"a context of {context} tokens",
            {
                "serving.context_length": context,
                "serving.prompt_tokens": min(scenario.prompt_tokens, context),
            },
        )
        for context in contexts
        if context >= least
    ]
