"""Three classifiers on one MiniLM: train, export one artifact, measure accuracy through ONNX.

    python tests/demo/classifiers.py [--fixtures build/fixtures] [--out build/classifiers]

Figures go to <out>/report.json; the exit code is 1 when an accuracy is below its limit.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from compiler.session import Session

ROOT = Path(__file__).resolve().parents[2]
BINARIES = Path(sys.executable).parent
LIMITS = {"tweets": 0.72, "topics": 0.85, "spam": 0.93}
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fixtures", type=Path, default=ROOT / "build" / "fixtures")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "classifiers")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    started = time.perf_counter()
    plan, artifact = arguments.out / "plan.json", arguments.out / "artifact"
    run("planner", "recommend", ROOT / "specs/examples/minilm-classifiers.json", "--out", plan)
    files = arguments.fixtures / "data"
    data = [f"--data={tenant}={files / f'{tenant}.train.jsonl'}" for tenant in LIMITS]
    model = arguments.fixtures / "minilm"
    run("compiler", "build", plan, "--model", model, *data, "--out", artifact)
    accuracies = measure(Session.open(artifact), files)
    for tenant, accuracy in accuracies.items():
        print(f"{tenant}: held-out accuracy {accuracy:.3f}, limit {LIMITS[tenant]}")
    report = {
        "schema_version": 1,
        "held_out_accuracy": accuracies,
        "total_seconds": round(time.perf_counter() - started, 1),
    }
    (arguments.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    sys.exit(any(accuracies[tenant] < limit for tenant, limit in LIMITS.items()))


def run(*command: object) -> None:
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    subprocess.run([BINARIES / words[0], *words[1:]], check=True)


def measure(session: Session, files: Path) -> dict[str, float]:
    """Accuracy per tenant; every batch mixes rows of all three."""
    rows = [
        (tenant, *json.loads(line).values())
        for tenant in LIMITS
        for line in (files / f"{tenant}.held_out.jsonl").read_text("utf-8").splitlines()
    ]
    mixed = [row for start in range(BATCH) for row in rows[start::BATCH]]
    right = dict.fromkeys(LIMITS, 0)
    for start in range(0, len(mixed), BATCH):
        tenants, texts, labels = zip(*mixed[start : start + BATCH], strict=True)
        for tenant, label, found in zip(
            tenants, labels, session.classify(texts, tenants), strict=True
        ):
            right[tenant] += found.label == str(label)
    return {tenant: right[tenant] / sum(row[0] == tenant for row in rows) for tenant in LIMITS}


if __name__ == "__main__":
    main()
