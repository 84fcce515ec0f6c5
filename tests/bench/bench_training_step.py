"""One training step of SmolLM2 (LoRA r16 on all linears, batch 4 x 256): ours ÷ PEFT's.

    python tests/bench/bench_training_step.py [--steps 3] [--rounds 4] [--json]

Each side runs in a process of its own, so that its resident growth is its own: the peak during the
steps less what was resident before the first. The sides take turns, as a machine's speed wanders by
more than they differ. Data, seed and optimizer are the same.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
BATCH, TOKENS, RANK, ALPHA, RATE = 4, 256, 16, 32.0, 2e-4
SIDES = ("ours", "peft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "build/fixtures/smollm2")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--compute", choices=("fp32", "bf16"))
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments)))
        return
    report = {compute: compare(arguments, compute) for compute in ("fp32", "bf16")}
    if arguments.json:
        print(json.dumps({"schema_version": 1, **report}, indent=2))
        return
    for compute, row in report.items():
        print(
            f"{compute}: {row['ours']['step_seconds']:.2f} s ours, "
            f"{row['peft']['step_seconds']:.2f} s PEFT, ratio {row['time_ratio']:.2f}; resident "
            f"growth {row['ours']['growth_mib']:.0f} MiB ours, {row['peft']['growth_mib']:.0f} MiB "
            f"PEFT, ratio {row['growth_ratio']:.2f}; loss {row['ours']['loss']:.4f} ours, "
            f"{row['peft']['loss']:.4f} PEFT"
        )


def compare(arguments: argparse.Namespace, compute: str) -> dict:
    """Medians of both sides over all rounds, and their ratios."""
    runs: dict[str, list[dict]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--compute", compute]
            command += ["--model", arguments.model, "--steps", arguments.steps]
            command += ["--threads", arguments.threads]
            output = subprocess.run(
                [str(word) for word in command], check=True, capture_output=True, text=True
            ).stdout
            runs[side].append(json.loads(output.splitlines()[-1]))
    sides = {
        side: {
            "step_seconds": median(s for run in found for s in run["step_seconds"]),
            "growth_mib": median(run["growth_mib"] for run in found),
            "loss": found[0]["loss"],
        }
        for side, found in runs.items()
    }
    ours, theirs = sides["ours"], sides["peft"]
    return {
        **sides,
        "time_ratio": ours["step_seconds"] / theirs["step_seconds"],
        "growth_ratio": ours["growth_mib"] / theirs["growth_mib"],
    }


def measure(arguments: argparse.Namespace) -> dict:
    """Seconds of each step after the first, and the resident growth over all of them."""
    import torch  # noqa: PLC0415  the parent process needs none of it

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    step = {"ours": ours, "peft": theirs}[arguments.side](arguments)
    ids = torch.randint(0, 49_152, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1))
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    seconds, loss = [], 0.0
    for _ in range(arguments.steps + 1):
        started = time.perf_counter()
        loss = step(ids)
        seconds.append(time.perf_counter() - started)
    return {
        "step_seconds": seconds[1:],
        "growth_mib": resident_mib("VmHWM") - before,
        "loss": loss,
    }


def resident_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


def ours(arguments: argparse.Namespace):
    """A step of the graph that `compiler build` trains."""
    import torch  # noqa: PLC0415

    from compiler.base_model import DTYPES, captured, load_base, load_module  # noqa: PLC0415
    from compiler.train import TensorBatch  # noqa: PLC0415
    from compiler.training_graph import start, training_graph  # noqa: PLC0415
    from planner.plan import Candidate  # noqa: PLC0415

    candidate = Candidate(
        method="lora",
        rank=RANK,
        alpha=ALPHA,
        targets=("all-linear",),
        format="fp32",
        compute=arguments.compute,
        batch_size=BATCH,
        sequence_length=TOKENS,
        learning_rate=RATE,
    )
    base = load_base(arguments.model, "causal_lm", "fp32", 0, TOKENS)
    begin = start(base, candidate, None, seed=0)
    graph = base.graph
    if arguments.compute == "bf16":
        module = load_module(arguments.model, "causal_lm", 0).to(DTYPES["bf16"])
        graph = captured(module, "causal_lm", TOKENS)
    training = training_graph(base, graph, candidate, begin, torch.device("cpu"))
    optimizer = torch.optim.AdamW(training.parameters.values(), lr=RATE, fused=True)

    def step(ids: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss, targets = training.loss(TensorBatch(ids, ids, torch.ones_like(ids)))
        (loss / targets).backward()
        optimizer.step()
        return float(loss.detach()) / targets

    return step


def theirs(arguments: argparse.Namespace):
    """The same step as PEFT users write it."""
    import peft  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.compute]
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    model = peft.get_peft_model(model, config).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, fused=True)

    def step(ids: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
