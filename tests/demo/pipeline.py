"""The planner inside a pipeline: plan every spec of a folder, and stop where a plan has moved.

  python tests/demo/pipeline.py SPECS PLANS

Each spec NAME.json has its plan in PLANS/NAME.json. A new spec gets one; an unchanged plan is left
alone; where the choice differs from the stored one, both are printed and the exit code is 5, so
that nobody retrains a tenant by accident. A spec that nothing satisfies prints its relaxations.
"""

import sys
from pathlib import Path

from planner import Plan, Spec, recommend
from planner.errors import DriftError, InfeasibleError


def main(specs: Path, plans: Path) -> int:
    plans.mkdir(parents=True, exist_ok=True)
    worst = 0
    for path in sorted(specs.glob("*.json")):
        spec, stored = Spec.model_validate_json(path.read_bytes()), plans / path.name
        try:
            plan = recommend(spec)
        except InfeasibleError as error:
            print(f"{path.stem}: {error}; {error.hint}")
            worst = max(worst, error.exit_code)
            continue
        if not stored.exists():
            stored.write_text(plan.model_dump_json(indent=2), encoding="utf-8")
            print(f"{path.stem}: new, {summary(plan)}")
            continue
        before = Plan.model_validate_json(stored.read_bytes())
        if before.candidate == plan.candidate:
            print(f"{path.stem}: unchanged")
            continue
        print(f"{path.stem}: was {summary(before)}, is now {summary(plan)}")
        worst = max(worst, DriftError.exit_code)
    return worst


def summary(plan: Plan) -> str:
    chosen = plan.candidate
    memory = plan.figures["training.peak_allocated_bytes"]
    size = f" r{chosen.rank}" if chosen.rank else ""
    return (
        f"{chosen.method}{size} on {chosen.format}, {(memory.high or 0.0) / 2**30:.1f} GiB at most"
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
