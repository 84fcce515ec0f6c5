"""How long a plan takes from a cold process, and how fast candidates are weighed.

  python tests/bench/bench_search.py [--runs 20] [--json]

cold      `planner recommend` of every example spec as a process of its own: the best and the middle
          wall time of the slowest one, and the largest resident memory of all
sweep     every candidate of every example spec, all methods: seconds for 100,000 candidates

exits with 1 where a figure is outside its limit (LIMITS).
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from planner.catalog import specs_folder
from planner.documents import load_spec
from planner.resolve import resolve
from planner.sweep import sweep

LIMITS = {
    "cold_seconds": 0.3,
    "seconds_per_100000": 1.0,
    "recommend_bytes": 200e6,
    "sweep_bytes": 200e6,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    specs = sorted((specs_folder() / "examples").glob("*.json"))
    # In turns, so that a slow moment of the machine is not one spec's alone.
    rounds = [[process(path) for path in specs] for _ in range(arguments.runs)]
    timed = {path.stem: runs for path, *runs in zip(specs, *rounds, strict=True)}
    slowest = max(timed, key=lambda name: statistics.median(s for s, _ in timed[name]))
    seconds = [s for s, _ in timed[slowest]]
    candidates, swept_seconds = swept(specs)
    report = {
        "schema_version": 1,
        "limits": LIMITS,
        "slowest_spec": slowest,
        "cold_seconds": min(seconds),
        "cold_seconds_median": statistics.median(seconds),
        "recommend_bytes": max(size for runs in timed.values() for _, size in runs),
        "candidates": candidates,
        "seconds_per_100000": swept_seconds / candidates * 1e5,
        "sweep_bytes": resident_bytes(),
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print(
            f"recommend, cold: {report['cold_seconds']:.3f} s at best, "
            f"{report['cold_seconds_median']:.3f} s in the middle ({slowest}), "
            f"{report['recommend_bytes'] / 1e6:.0f} MB\n"
            f"sweep: {candidates:,} candidates, {report['seconds_per_100000']:.2f} s for 100,000, "
            f"{report['sweep_bytes'] / 1e6:.0f} MB"
        )
    return int(any(report[name] > limit for name, limit in LIMITS.items()))


def process(spec: Path) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of one `planner recommend`, feasible or not."""
    command = [sys.executable, "-m", "planner.cli", "recommend", str(spec)]
    null = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    start = time.perf_counter()
    child = os.posix_spawn(command[0], command, os.environ, file_actions=null)
    _, _, usage = os.wait4(child, 0)
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def swept(specs: list[Path]) -> tuple[int, float]:
    """Candidates and seconds, after one sweep to load what a sweep loads."""
    scenarios = [resolve(load_spec(path)) for path in specs]
    sweep(scenarios[0], unbuildable=True)
    start = time.perf_counter()
    count = sum(len(sweep(scenario, unbuildable=True)) for scenario in scenarios)
    return count, time.perf_counter() - start


def resident_bytes() -> int:
    """The peak of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    sys.exit(main())
