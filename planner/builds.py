"""Whether the compiler builds what a scenario asks for."""

from planner.adapters import select
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
    for pattern in scenario.spec.pinned.targets or ():
        roles = {target.role for target in select((pattern,), shape)}
        if roles.isdisjoint(ALL_LINEAR):
            raise UsageError(
                f"pinned.targets: the compiler does not adapt '{pattern}' yet, whose role is "
                f"{' or '.join(sorted(roles))}; it adapts {', '.join(ALL_LINEAR)}",
                hint=ALL_THE_SAME,
            )
