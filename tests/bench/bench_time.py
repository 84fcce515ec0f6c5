"""Predicted against published times: serving, decoding and training.

    python tests/bench/bench_time.py

The published figures are a copy of a few rows of what their sources give (tests/bench/published).
Nothing is fitted to them here; what the model takes from a source is named in planner/cost.
"""

import csv
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from planner import catalog
from planner.adapters import adapted, select
from planner.architecture import Architecture, architecture
from planner.cost.adapter import AdapterCost, adapter_cost, target_set
from planner.cost.latency import Served, first_token, per_token, throughput
from planner.cost.memory import Load, cache_bytes, weights_bytes
from planner.cost.training_time import training_step
from planner.cost.work import EAGER, EAGER_SERVER, FUSED, Work
from planner.method import method, methods
from planner.spec import Hardware

PUBLISHED = Path(__file__).parent / "published"
LLAMA_13B = {
    "model_type": "llama",
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "intermediate_size": 13824,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
PROMPT_TOKENS = OUTPUT_TOKENS = 260
"""S-LoRA draws both evenly from 8 to 512."""
MEMORY_SHARE = 0.9
"""Of the device, for weights and cache; assumed, S-LoRA's own setting is not in its logs."""
NONE = AdapterCost(0, 0, 0, 0, 0, 0)
LOAD = Load(
    slots=1,
    sequences=1,
    context_length=0,
    prompt_tokens=PROMPT_TOKENS,
    causal=True,
    cache_element_bytes=2,
    other_bytes=2,
    row_element_bytes=2,
)
S_LORA_TARGETS = ("attention.query", "attention.key", "attention.value", "attention.output")
SERVING_BAR, TRAINING_BAR = 0.25, 0.25
"""Median error that the script fails beyond."""


class Line(NamedTuple):
    source: str
    quantity: str
    published: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1


def rows(name: str) -> Iterator[dict[str, str]]:
    with (PUBLISHED / f"{name}.csv").open(newline="") as file:
        yield from csv.DictReader(file)


def model(name: str) -> Architecture:
    return architecture(LLAMA_13B) if name == "llama-2-13b" else catalog.model(name).architecture


def adapter(
    name: str, rank: int | None, targets: tuple[str, ...], shape: Architecture
) -> AdapterCost:
    found = method(name)
    return adapter_cost(found, rank, adapted(found, target_set(select(targets, shape))), shape)


def served_adapters(ranks: str, count: int, shape: Architecture) -> AdapterCost:
    """The mean adapter: ranks are dealt in turn, requests evenly to the adapters."""
    if count == 0:
        return NONE
    dealt = [int(rank) for rank in ranks.split()]
    used = [dealt[i % len(dealt)] for i in range(count)]
    costs = {rank: adapter("lora", rank, S_LORA_TARGETS, shape) for rank in set(used)}
    means = (
        statistics.fmean(values) for values in zip(*(costs[rank] for rank in used), strict=True)
    )
    return AdapterCost(*means)  # type: ignore[arg-type]


class Serving(NamedTuple):
    """A device that serves one kind of request with a given number of sequences at once."""

    shape: Architecture
    cost: AdapterCost
    served: Served
    device: Hardware

    def load(self, sequences: float) -> Load:
        context = 2 * (PROMPT_TOKENS + OUTPUT_TOKENS // 2)
        return LOAD._replace(sequences=sequences, context_length=context)  # type: ignore[arg-type]

    def rate(self, sequences: float) -> float:
        load = self.load(sequences)
        prompt = first_token(self.shape, self.cost, self.served, load)
        step = per_token(self.shape, self.cost, self.served, load)
        found = throughput(prompt, step, load, OUTPUT_TOKENS, self.device, "bf16")
        assert found is not None
        return float(found.requests_per_second)

    def most_sequences(self) -> float:
        free = MEMORY_SHARE * self.device.memory_gib * 2**30
        free -= weights_bytes(self.shape, "bf16", 2)
        whole = self.load(1)._replace(context_length=PROMPT_TOKENS + OUTPUT_TOKENS)
        return free / cache_bytes(self.shape, whole)

    def steady(self, offered: float) -> tuple[float, float]:
        """Requests per second, and seconds that one decodes, when so many are offered."""
        low, high = 0.5, self.most_sequences()
        if self.rate(high) < offered:
            return self.rate(high), high / self.rate(high)
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.rate(middle) < offered else (low, middle)
        return offered, high / offered


def seconds(work: Work, device: Hardware, compute: str = "bf16") -> float:
    found = work.seconds(device, compute)
    assert found is not None
    return float(found)


def serving() -> Iterator[Line]:
    device = catalog.hardware("a100-80gb")
    for row in rows("serving"):
        shape = model(row["model"])
        cost = served_adapters(row["ranks"], int(row["adapters"]), shape)
        bare = EAGER_SERVER._replace(adapter_kernels=0)
        served = Served("bf16", "unmerged", "exact", EAGER_SERVER if cost.row_bytes else bare)
        found = Serving(shape, cost, served, device)
        offered, duration = (
            float(row["offered_requests_per_second"]),
            float(row["duration_seconds"]),
        )
        rate, decode = found.steady(offered)
        # Published is requests over the time until the last one is done.
        drained = duration * offered / rate + decode
        name = f"{row['model']}, {row['adapters']} adapters, {offered:g} offered, {duration:g} s"
        yield Line(
            name, "requests/s", float(row["requests_per_second"]), duration * offered / drained
        )
        yield Line(name, "decode s", float(row["decode_seconds"]), decode)


def decoding() -> Iterator[Line]:
    engines = {"eager": EAGER._replace(adapter_kernels=0), "fused": FUSED}
    for row in rows("decoding"):
        shape, device = model(row["model"]), catalog.hardware(row["hardware"])
        wide = device.kind == "cpu"
        load = LOAD._replace(context_length=256)
        load = load._replace(cache_element_bytes=4, other_bytes=4) if wide else load
        served = Served(row["format"], "unmerged", row["precision"], engines[row["engine"]])
        work = per_token(shape, NONE, served, load)
        published = 1 / float(row["tokens_per_second"])
        predicted = seconds(work, device, "fp32" if wide else "bf16")
        name = f"{row['model']} {row['format']}, {row['source']}"
        yield Line(name, "s/token", published, predicted)


def training() -> Iterator[Line]:
    for row in rows("training"):
        if row["method"] not in methods():
            continue
        shape, found = model(row["model"]), method(row["method"])
        rank = int(row["rank"]) if row["rank"] else None
        targets = tuple(row["targets"].split())
        cost, whole = adapter(found.name, rank, targets, shape), found.trains_base
        device = catalog.hardware(row["hardware"])
        compute = "fp32" if device.kind == "cpu" else "bf16"
        work = training_step(
            shape,
            cost,
            float(row["tokens"]),
            3.0 if whole else 2.0,
            sequence_length=float(row["tokens"]) / int(row["batch_size"]),
            format_=compute,
            compute=compute,
            trained_bytes=2.0 if whole else 4.0,
        )
        predicted = seconds(work, device, compute)
        yield Line(row["source"], "s/step", float(row["step_seconds"]), predicted)


def show(title: str, lines: list[Line]) -> float:
    print(f"\n{title}")
    for line in lines:
        print(
            f"  {line.source:<58}{line.quantity:<11}{line.published:>9.4g}"
            f"{line.predicted:>10.4g}{100 * line.error:>+8.0f} %"
        )
    median = statistics.median(abs(line.error) for line in lines)
    print(f"  median |error| {100 * median:.0f} %")
    return median


def main() -> None:
    print(f"{'':60}{'':<11}{'published':>9}{'predicted':>10}{'error':>10}")
    lines = list(serving())
    served = show("S-LoRA on an A100 80 GB: requests", [x for x in lines if "req" in x.quantity])
    show(
        "S-LoRA on an A100 80 GB: one request's decoding", [x for x in lines if "dec" in x.quantity]
    )
    show("Decoding at batch 1", list(decoding()))
    trained = show(
        "A training step: Hugging Face PEFT on an L40S, this project on two cores", list(training())
    )
    raise SystemExit(served > SERVING_BAR or trained > TRAINING_BAR)


if __name__ == "__main__":
    main()
