"""Spec to plan: resolve, evaluate every candidate, choose, and say why."""

from planner.architecture import Architecture, shape
from planner.candidates import select
from planner.catalog import config_digest
from planner.cut import Micro, compute_of, optimizer_of
from planner.errors import InfeasibleError, UsageError
from planner.evaluate import Evaluated, Search, micro_of, search
from planner.explain import infeasibility, reasons
from planner.figures import figures
from planner.method import ALL_LINEAR
from planner.pareto import choose
from planner.plan import BUILT_TASKS, Candidate, ModelFacts, Plan
from planner.rejections import rejections
from planner.relaxations import nearest, said
from planner.resolve import Scenario, resolve
from planner.schedule import learning_rate, training
from planner.spec import Spec


def recommend(spec: Spec, *, unbuildable: bool = False) -> Plan:
    """The plan for a spec; raises UsageError, or InfeasibleError with the nearest relaxations.

    With `unbuildable` the choice is among all methods, tasks and families, whether or not the
    compiler builds them yet.
    """
    if spec.task not in BUILT_TASKS and not unbuildable:
        raise UsageError(
            f"the compiler does not build the task '{spec.task}' yet; it builds "
            f"{' and '.join(BUILT_TASKS)}",
            hint="--include-unbuildable plans it all the same",
        )
    scenario = resolve(spec)
    if not unbuildable:
        _check_built_family(scenario.architecture)
        _check_built_targets(scenario)
    weighed = search(scenario, unbuildable=unbuildable)
    if not weighed.feasible:
        message = infeasibility(scenario, weighed)
        found = tuple(relaxation for relaxation, _ in nearest(scenario, weighed))
        raise InfeasibleError(message, hint=said(found), relaxations=found)
    chosen, rounds = choose(scenario, weighed.feasible)
    micro = micro_of(scenario, chosen)
    candidate = _candidate(scenario, chosen, micro)
    schedule = training(scenario, -(-scenario.rows // micro.examples))
    # Of our own making: no validator is built for it, which would take a tenth of the time.
    return Plan.model_construct(
        task=spec.task,
        model=_facts(scenario),
        candidate=candidate,
        training=schedule,
        figures=figures(scenario, chosen, micro, schedule),
        reasons=tuple(reasons(scenario, weighed, chosen, micro, rounds, candidate)),
        rejections=tuple(rejections(scenario, weighed, chosen, rounds)),
        evidence_ids=_evidence(weighed, chosen),
        spec=spec,
    )


def _check_built_family(shape: Architecture) -> None:
    if shape.unbuilt:
        raise UsageError(
            f"the compiler does not build the family '{shape.model_type}' yet: {shape.unbuilt}",
            hint="--include-unbuildable plans it all the same",
        )


def _check_built_targets(scenario: Scenario) -> None:
    """Every pinned target is one that the compiler adapts."""
    for pattern in scenario.spec.pinned.targets or ():
        roles = {target.role for target in select((pattern,), scenario.architecture)}
        if roles.isdisjoint(ALL_LINEAR):
            raise UsageError(
                f"pinned.targets: the compiler does not adapt '{pattern}' yet, whose role is "
                f"{' or '.join(sorted(roles))}; it adapts {', '.join(ALL_LINEAR)}",
                hint="--include-unbuildable plans it all the same",
            )


def _candidate(scenario: Scenario, chosen: Evaluated, micro: Micro) -> Candidate:
    adapter, pinned = chosen.adapter, scenario.spec.pinned
    alpha = None
    if adapter.method.default_alpha is not None and adapter.rank is not None:
        alpha = pinned.alpha or adapter.method.default_alpha(adapter.rank)
    return Candidate.model_construct(
        method=adapter.method.name,
        rank=adapter.rank,
        alpha=None if alpha is None else float(alpha),
        targets=adapter.targets,
        format=chosen.form.format,
        compute=compute_of(scenario),
        batch_size=micro.batch_size,
        gradient_accumulation=micro.gradient_accumulation,
        sequence_length=scenario.sequence_length,
        checkpointing=micro.checkpointing,
        optimizer=optimizer_of(scenario, adapter),
        learning_rate=learning_rate(scenario, adapter),
        export=chosen.form.export,
        precision=chosen.form.precision,
    )


def _facts(scenario: Scenario) -> ModelFacts:
    model = scenario.model
    return ModelFacts.model_construct(
        name=model.name,
        family=model.architecture.model_type,
        config_digest=config_digest(model.config),
        parameters=model.architecture.parameters,
        shape=shape(model.config),
    )


def _evidence(weighed: Search, chosen: Evaluated) -> tuple[str, ...]:
    """Of the chosen candidate, and of every method it was preferred to."""
    ids = dict.fromkeys((*chosen.quality.evidence_ids, "claim-batch-size", "claim-learning-rate"))
    weighed_of = dict.fromkeys((c.adapter.quality, c.form_quality) for c in weighed.candidates)
    for adapter, form in weighed_of:
        ids.update(dict.fromkeys((*adapter.evidence_ids, *form.evidence_ids)))
    return tuple(ids)
