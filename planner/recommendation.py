"""Spec to plan: resolve, evaluate every candidate, choose, and say why."""

from planner.architecture import shape
from planner.builds import check_builds
from planner.catalog import config_digest
from planner.cut import Micro, compute_of, optimizer_of
from planner.errors import InfeasibleError
from planner.evaluate import Evaluated, Search, micro_of, search
from planner.explain import infeasibility, reasons
from planner.figures import figures
from planner.pareto import choose
from planner.plan import Candidate, ModelFacts, Plan
from planner.rejections import rejections
from planner.relaxations import nearest, said
from planner.resolve import resolve
from planner.scenario import Scenario
from planner.schedule import learning_rate, training
from planner.spec import Spec


def recommend(spec: Spec, *, unbuildable: bool = False) -> Plan:
    """The plan for a spec; raises UsageError, or InfeasibleError with the nearest relaxations.

    With `unbuildable` the choice is among all methods, tasks and families, whether or not the
    compiler builds them yet.
    """
    scenario = resolve(spec)
    if not unbuildable:
        check_builds(scenario)
    weighed = search(scenario, unbuildable=unbuildable)
    if not weighed.feasible:
        message = infeasibility(scenario, weighed)
        offered = nearest(scenario, weighed, unbuildable=unbuildable)
        found = tuple(relaxation for relaxation, _ in offered)
        raise InfeasibleError(message, hint=said(found), relaxations=found)
    chosen, rounds = choose(scenario, weighed.feasible)
    micro = micro_of(scenario, chosen)
    candidate = _candidate(scenario, chosen, micro)
    schedule = training(scenario, -(-scenario.rows // micro.examples))
    # Of our own making, so that no validator is built for it: start-up time.
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
