"""Whether the compiler builds what a scenario asks for."""

from planner.adapters import select
from planner.architecture import Architecture
from planner.errors import UsageError
from planner.method import ALL_LINEAR
from planner.plan import BUILT_TASKS
from planner.scenario import Scenario

ALL_THE_SAME = "--include-unbuildable weighs it all the same"


def check_builds(scenario: Scenario) -> None:
    """Raises UsageError for a task, family or pinned target that it does not build."""
    task, shape = scenario.spec.task, scenario.architecture
    if task not in BUILT_TASKS:
        raise UsageError(
            f"the compiler does not build the task '{task}' yet; it builds "
            f"{' and '.join(BUILT_TASKS)}",
            hint=ALL_THE_SAME,
        )
    if shape.unbuilt:
        raise UsageError(
            f"the compiler does not build the family '{shape.model_type}' yet: {shape.unbuilt}",
            hint=ALL_THE_SAME,
        )
    check_targets("pinned.targets", scenario.spec.pinned.targets or (), shape, hint=ALL_THE_SAME)


def check_targets(
    key: str, targets: tuple[str, ...], shape: Architecture, *, hint: str | None = None
) -> None:
    """Raises UsageError for a target that matches no linear, or only linears that stay as they are.

    `key` is where the targets were given.
    """
    for pattern in targets:
        roles = {target.role for target in select((pattern,), shape)}
        if roles.isdisjoint(ALL_LINEAR):
            raise UsageError(
                f"{key}: the compiler does not adapt '{pattern}' yet, whose role is "
                f"{' or '.join(sorted(roles))}; it adapts {', '.join(ALL_LINEAR)}",
                hint=hint,
            )
