"""The whole way on a real model: plan, train two tenants, export, measure, answer in one batch.

    python tests/demo/demo.py [--fixtures build/fixtures] [--out build/demo]

Runs the commands a user would run and prints them. Figures go to <out>/report.json.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from compiler.data import encode, read
from compiler.session import Session

ROOT = Path(__file__).resolve().parents[2]
BINARIES = Path(sys.executable).parent
TENANTS = ("definitions", "faq")
LIMITS = {
    "fp32": {"definitions": 25.0, "faq": 30.0},
    "nf4": {"definitions": 30.0, "faq": 35.0},
}
"""Held-out perplexity that each tenant must reach, by the format of the base."""

PROMPTS = {
    "definitions": 'Give a short dictionary definition of "harbour master".',
    "faq": "What is a building permit?",
    "base": "What is the capital of France?",
}
SEQUENCE_LENGTH = 192


@dataclass(frozen=True)
class Place:
    model: Path
    data: Path
    out: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fixtures", type=Path, default=ROOT / "build" / "fixtures")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo")
    arguments = parser.parse_args()
    place = Place(arguments.fixtures / "smollm2", arguments.fixtures / "data", arguments.out)
    shutil.rmtree(place.out, ignore_errors=True)
    place.out.mkdir(parents=True)
    started = time.perf_counter()
    report: dict[str, object] = {"schema_version": 1, "machine": machine()}
    for weight_format, spec in (
        ("fp32", "smollm2-tenants.json"),
        ("nf4", "smollm2-tenants-nf4.json"),
    ):
        report[weight_format] = show(weight_format, spec, place)
    report["merged"] = show_merged(place)
    report["total_seconds"] = round(time.perf_counter() - started, 1)
    (place.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(f"\nfigures: {place.out / 'report.json'}; {report['total_seconds']:.0f} s in all")
    missed = list(misses(report))
    for miss in missed:
        print(f"missed: {miss}", file=sys.stderr)
    sys.exit(1 if missed else 0)


def machine() -> dict[str, object]:
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {"processor": processor(), "cores": os.cpu_count(), "commit": commit}


def processor() -> str:
    path = Path("/proc/cpuinfo")
    names = [line for line in path.read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def run(*command: object) -> float:
    """Print and run a command; returns its seconds."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    started = time.perf_counter()
    subprocess.run([BINARIES / words[0], *words[1:]], check=True)
    return round(time.perf_counter() - started, 1)


def show(weight_format: str, spec: str, place: Place) -> dict[str, object]:
    """Plan, build and measure on one format of the base."""
    plan, artifact = place.out / f"plan-{weight_format}.json", place.out / weight_format
    seconds = {
        "recommend": run("planner", "recommend", ROOT / "specs/examples" / spec, "--out", plan)
    }
    data = [f"--data={tenant}={place.data / f'{tenant}.train.jsonl'}" for tenant in TENANTS]
    seconds["build"] = run(
        "compiler", "build", plan, "--model", place.model, *data, "--out", artifact,
        "--cache", place.out / "cache",
    )  # fmt: skip
    candidate = json.loads(plan.read_text("utf-8"))["candidate"]
    session = Session.open(artifact)
    figures = {tenant: perplexities(session, tenant, place) for tenant in TENANTS}
    answers = answer(session)
    parity = json.loads((artifact / "parity.json").read_text("utf-8"))
    return {
        "candidate": candidate,
        "seconds": seconds,
        "held_out_perplexity": figures,
        "answers_of_one_batch": answers,
        "parity": parity["agreements"],
    }


def perplexities(session: Session, tenant: str, place: Place) -> dict[str, float]:
    """Held-out perplexity of the base and of the tenant, by the exported graph."""
    records = read(place.data / f"{tenant}.held_out.jsonl", "causal_lm")
    encoded = encode(records, session.tokenizer, SEQUENCE_LENGTH)
    sequences = [(example.input_ids, example.labels) for example in encoded.examples]
    found = {
        name: round(session.perplexity(sequences, name).perplexity, 2) for name in ("base", tenant)
    }
    print(f"{tenant}: held-out perplexity {found['base']} (base) -> {found[tenant]} ({tenant})")
    return {"base": found["base"], "tenant": found[tenant]}


def answer(session: Session) -> list[dict[str, str]]:
    """One answer per tenant and one of the base, from one batch."""
    names = list(PROMPTS)
    results = session.generate(
        [PROMPTS[name] for name in names], names, max_new_tokens=40, template="chat"
    )
    for result in results:
        print(f"[{result.tenant}] {PROMPTS[result.tenant]}\n    {result.text.strip()}")
    return [{"tenant": r.tenant, "prompt": PROMPTS[r.tenant], "text": r.text} for r in results]


def show_merged(place: Place) -> dict[str, object]:
    """One tenant folded into the fp32 base; its perplexity must be the unmerged one's."""
    out = place.out / "merged"
    seconds = run("compiler", "merge", place.out / "fp32", "--tenant", "definitions", "--out", out)
    session = Session.open(out)
    records = read(place.data / "definitions.held_out.jsonl", "causal_lm")
    encoded = encode(records, session.tokenizer, SEQUENCE_LENGTH)
    sequences = [(example.input_ids, example.labels) for example in encoded.examples]
    found = round(session.perplexity(sequences, "definitions").perplexity, 2)
    print(f"definitions, merged: held-out perplexity {found}")
    drift = json.loads((out / "drift.json").read_text("utf-8"))
    return {"perplexity": found, "seconds": seconds, "drift": drift}


def misses(report: dict) -> list[str]:  # type: ignore[type-arg]
    found = []
    for weight_format, limits in LIMITS.items():
        for tenant, limit in limits.items():
            value = report[weight_format]["held_out_perplexity"][tenant]["tenant"]
            if value > limit:
                found.append(f"{weight_format} {tenant}: perplexity {value}, limit {limit}")
    return found


if __name__ == "__main__":
    main()
