"""Decoding with an adapter: our session's tokens per second ÷ Hugging Face generate with PEFT.

    python tests/bench/bench_decode.py --artifact build/demo/nf4 [--tokens 64] [--rounds 5] [--json]

One prompt and one row on both sides, greedy, the same number of new tokens, the sides in turn.
PEFT runs the tenant's own adapter, as `compiler export-adapter` writes it, on the fp32 model.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compiler import adapter as adapters
from compiler import generation as continuations
from compiler.peft_write import write
from compiler.session import Session
from compiler.tenant_graph import CachedStep
from compiler.tenants import ADAPTER, tenant_folder

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Explain in a few sentences what an insurance policy is and why people buy one."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "build/fixtures/smollm2")
    parser.add_argument("--artifact", type=Path, action="append")
    parser.add_argument("--tenant", default="definitions")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    demo = ROOT / "build/demo"
    rows = [
        compare(path, arguments) for path in arguments.artifact or [demo / "fp32", demo / "nf4"]
    ]
    if arguments.json:
        print(json.dumps({"schema_version": 1, "rows": rows}, indent=2))
        return
    for row in rows:
        print(
            f"{row['artifact']} ({row['format']}, {row['precision']}): "
            f"{row['ours']:.1f} tokens/s ours, {row['theirs']:.1f} Hugging Face + PEFT, "
            f"ratio {row['ratio']:.2f}"
        )


def compare(folder: Path, arguments: argparse.Namespace) -> dict:
    """Median tokens per second of both sides."""
    threads = os.cpu_count()
    torch.set_num_threads(threads)
    session = Session.open(folder, threads=threads)
    model = with_adapter(folder, arguments)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ours, theirs = [], []
    for _ in range(arguments.rounds + 1):
        ours.append(arguments.tokens / timed(lambda: decode(session, ids, arguments)))
        theirs.append(arguments.tokens / timed(lambda: generate(model, ids, arguments)))
    ours, theirs = ours[1:], theirs[1:]
    return {
        "artifact": str(folder),
        "format": session.manifest.format,
        "precision": session.manifest.precision,
        "ours": median(ours),
        "theirs": median(theirs),
        "ratio": median(a / b for a, b in zip(ours, theirs, strict=True)),
    }


def timed(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def with_adapter(folder: Path, arguments: argparse.Namespace):
    """The fp32 model with the tenant's adapter, unmerged, as PEFT serves it."""
    adapter = adapters.load(folder / tenant_folder(arguments.tenant) / ADAPTER)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as place:
        write(adapter, Path(place) / "adapter", "smollm2")
        return peft.PeftModel.from_pretrained(model, Path(place) / "adapter").eval()


def decode(session: Session, ids: list[int], arguments: argparse.Namespace) -> None:
    """Greedy as in Session.generate, but through end tokens: both sides make as many tokens."""
    found = continuations.generate(
        CachedStep(session._graph, [arguments.tenant]),
        [ids],
        continuations.Sampling(max_new_tokens=arguments.tokens),
        pad_id=session.tokenizer.pad_id,
        end_ids=(),
        stopped=lambda _: False,
        context_length=None,
    )
    assert len(found[0].tokens) == arguments.tokens


def generate(model, ids: list[int], arguments: argparse.Namespace) -> None:
    with torch.inference_mode():
        found = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            do_sample=False,
            min_new_tokens=arguments.tokens,
            max_new_tokens=arguments.tokens,
            pad_token_id=2,
        )
    assert found.shape[1] == len(ids) + arguments.tokens


if __name__ == "__main__":
    main()
