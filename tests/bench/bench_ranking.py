"""How well published differences predict those of a source they leave out.

    python tests/bench/bench_ranking.py [method_delta_vs_lora.csv] [--json out.json]

Every source in turn is held out, with the figures that other papers copied from it; the model is
fitted to the rest and predicts the source's tables. Without a path the project's own curated rows
are predicted. Printed: Kendall's tau-b over the pairs of methods within a table, LoRA among them,
and the regret, best actual less the actual of the recommended, in points, by two rules:

    best    the highest prediction, which is what a priority of quality nearly asks
    rule    the planner's own: candidates within a tie of the highest prediction go on to memory,
            latency and simplicity. Tables state no budget to share, so these are taken as tied
            too, and simplicity gives the table to LoRA wherever it is among them

The model predicts twice. "as planned" is what a method is worth on its own, which is what the
planner expects of a build. "as printed" adds what is known of the table before its results are:
whose method it is, and how its learning rates were set. Only the latter can be held against what
a paper prints; the pooled mean knows neither. Last comes the model less the pooled mean, with the
5th and 95th percentile over resampled sources: what the number of sources can tell apart.
"""

import argparse
import csv
import json
import math
import random
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from planner.quality import TIE_POINTS
from planner.quality.causes import EVEN_POINTS, log_odds, sensitivity
from planner.quality.posterior import SETTING_POINTS, Posterior, causes, circumstances, fit
from planner.quality.rows import Row, published, run_variance

METHODS = {
    "full": ("Full FT", "Full BF16"),
    "dora": ("DoRA", "DoRA (m all, V qkv only)"),
    "pissa": ("PiSSA", "PiSSA+DoRA", "PiSSA+AdaLoRA"),
    "qpissa": ("QPiSSA",),
    "loftq": ("LoftQ",),
    "adalora": ("AdaLoRA",),
    "lora_fa": ("LoRA-FA",),
    "lora": ("QLoRA", "QLoRA NF4+DQ", "QLoRA FP4", "QLoRA Int8"),
    "miss": ("MiSS",),
    "prefix_tuning": ("Prefix", "Prefix-layer", "Prefix-layer (PreLayer)"),
    "prompt_tuning": ("Prefix-embedding", "Prefix-embedding (PreEmbed)"),
    "houlsby": ("Series adapter", "HAdapter", "H-Adapter"),
    "parallel_adapter": ("Parallel adapter",),
    "pfeiffer": ("PAdapter", "P-Adapter"),
    "oft": ("OFT b=16", "OFT b=8", "OFT b=4", "OFTv2", "OFTv2 b=32", "QOFT", "QOFT b=32"),
    "boft": ("BOFT m=2 b=8", "BOFT m=4 b=4", "BOFT m=6 b=2"),
    "hra": ("HRA lambda=1e-4", "HRA lambda=inf (orthogonal)", "HRA lambda=0"),
    "bitfit": ("BitFit",),
    "vera": ("VeRA", "VeRA (quantised base)"),
    "dvora": ("DVoRA",),
    "vb_lora": ("VB-LoRA",),
    "lora_xs": ("LoRA-XS",),
    "galore": ("GaLore",),
}
NAMES = {label: name for name, labels in METHODS.items() for label in labels}
FORMATS = {
    "nf4": ("QLoRA", "QLoRA NF4+DQ", "QOFT", "QOFT b=32", "LoftQ", "QPiSSA"),
    "fp4": ("QLoRA FP4",),
    "int8": ("QLoRA Int8",),
}
FORMAT = {label: name for name, labels in FORMATS.items() for label in labels}
FAMILIES = {
    "math": ("math",),
    "code": ("code", "text-to-SQL"),
    "classification": ("NLU", "NLU (low-data sweep)"),
    "instruction": ("commonsense", "instruction/knowledge", "chat", "instruction"),
    "style": ("summarization", "NLG"),
    "image": ("vision classification", "vision-language", "vision-language instruct"),
}
FAMILY = {label: name for name, labels in FAMILIES.items() for label in labels}
SOURCES = {
    "microsoft/LoRA README": "2106.09685",
    "LLM-Adapters README": "2304.01933",
    "LoftQ README": "2310.08659",
    "VB-LoRA (NeurIPS 2024)": "2405.15179",
    "HRA (NeurIPS 2024)": "2405.17484",
    "PiSSA README/abstract": "2404.02948",
}
DATA = {
    "Commonsense170K": "commonsense-170k",
    "GSM8K train": "gsm8k",
    "MetaMathQA-100K": "metamathqa-100k",
    "MetaMathQA-40K": "metamathqa-40k",
    "MetaMathQA": "metamathqa",
    "Math10K": "math10k",
    "CodeFeedback-100K": "codefeedback-100k",
    "WizardLM-100K": "wizardlm-100k",
    "Alpaca": "alpaca",
    "Alpaca-cleaned": "alpaca",
    "Alpaca-cleaned 51K": "alpaca",
    "XSum": "xsum",
    "E2E": "e2e",
    "VTAB-1K": "vtab-1k",
}
REFERENCE_SOURCE = "2106.09685"
"""Where LoRA is the authors' own method."""
PERCENT = ("2402.09353", "2311.06243", "2405.17484", "2404.04316")
"""Sources whose LLaMA rows state sizes in percent of the model."""
FOUR_BITS = (35.0, 45.0, 64.1, 68.0, 21.14, 20.72)
"""LoftQ's results at 4 bits; the others are at 2 to 3, which no format here has."""


def read(table: Iterable[str]) -> tuple[list[Row], list[str]]:
    """The rows of the shared table, and why any are left out."""
    rows, left_out = [], defaultdict[str, int](int)
    bits = {r.data: (r.examples, r.bits) for r in published().rows}
    for cells in csv.DictReader(table):
        reason = exclusion(cells)
        if reason:
            left_out[reason] += 1
            continue
        rows.append(row_of(cells, bits))
    return rows, [f"{count} rows: {reason}" for reason, count in left_out.items()]


RATES = {row.source: row.rate for row in published().rows}


def exclusion(cells: Mapping[str, str]) -> str | None:
    if "forgetting" in cells["task_type"]:
        return "they measure forgetting"
    loftq = cells["method"] == "LoftQ" and cells["source"].startswith("LoftQ")
    if loftq and float(cells["value"]) not in FOUR_BITS:
        return "fewer than 4 bits"
    return None if cells["method"] in NAMES else f"no such method here: {cells['method']}"


def row_of(
    cells: Mapping[str, str], data: Mapping[str | None, tuple[int | None, float | None]]
) -> Row:
    found = re.search(r"\d{4}\.\d{5}", cells["source"])
    source = found.group() if found else SOURCES[cells["source"]]
    parameters = float(cells["params_b"] or 7.0)
    scale = 10.0 if cells["metric"] == "MT-Bench" else 1.0
    name = DATA.get(cells["train_data"])
    if cells["task_type"] == "NLU":
        name = "glue"
    if cells["task_type"].startswith("NLU (low"):
        name = "mnli" if cells["train_samples"] == "392000" else f"mnli-{cells['train_samples']}"
    examples, bits = data.get(name, (None, None))
    quantised = "README" in cells["source"] and source == "2404.02948"

    def size(column: str) -> float | None:
        if not cells[column]:
            return None
        percent = source in PERCENT and "LLaMA" in cells["base_model"]
        return float(cells[column]) * (parameters * 10 if percent else 1.0)

    return Row(
        id="",
        source=source,
        model=cells["base_model"],
        parameters_b=parameters,
        family=FAMILY[cells["task_type"]],
        data=name,
        metric=cells["metric"],
        method=NAMES[cells["method"]],
        size_m=parameters * 1000 if NAMES[cells["method"]] == "full" else size("size"),
        format="nf4" if quantised else FORMAT.get(cells["method"], "16-bit"),
        value=scale * float(cells["value"]),
        reference="lora",
        reference_size_m=size("lora_ref_size"),
        reference_format="nf4" if quantised else "16-bit",
        reference_value=scale * float(cells["lora_ref_value"]),
        self_reported=-1 if source == REFERENCE_SOURCE else int(cells["self_reported"] == "True"),
        rate=RATES[source],
        examples=examples,
        bits=bits,
    )


class Prediction(NamedTuple):
    """Points against the reference: expected, its standard deviation, and published."""

    row: Row
    expected: float
    deviation: float


Predictor = Callable[[Sequence[Row], Sequence[Row]], list[Prediction]]


def as_planned(training: Sequence[Row], held_out: Sequence[Row]) -> list[Prediction]:
    """As the planner expects: what a method is worth, whoever reports it."""
    return predictions(training, held_out, printed=False)


def as_printed(training: Sequence[Row], held_out: Sequence[Row]) -> list[Prediction]:
    """As the source would print it: with authors' inflation and what its learning rates do."""
    return predictions(training, held_out, printed=True)


def predictions(
    training: Sequence[Row], held_out: Sequence[Row], *, printed: bool
) -> list[Prediction]:
    classes = published().classes
    posterior = fitted(tuple(training))
    found = []
    for row in held_out:
        terms, shared = causes(row, classes), circumstances(row, classes)
        effect, _ = posterior.expect(terms | shared if printed else terms)
        _, deviation = posterior.expect(terms | shared)
        noise = run_variance(row.metric, row.reference_value) + SETTING_POINTS**2
        fade = sensitivity(row.reference_value)
        expected = points_from(row.reference_value, effect)
        found.append(Prediction(row, expected, fade * math.hypot(deviation, math.sqrt(noise))))
    return found


@cache
def fitted(training: tuple[Row, ...]) -> Posterior:
    return fit(training, published().classes)


def points_from(score: float, effect: float) -> float:
    """The points that an effect adds to a score."""
    return 100.0 / (1.0 + math.exp(-log_odds(score) - effect / EVEN_POINTS)) - score


def pooled_mean(training: Sequence[Row], held_out: Sequence[Row]) -> list[Prediction]:
    """The plain mean of all rows of a method and format; nothing where there is none."""
    points = defaultdict[tuple[str, str], list[float]](list)
    for row in training:
        points[row.method, row.format].append(row.points)
    means = {key: statistics.fmean(values) for key, values in points.items()}
    return [Prediction(r, means.get((r.method, r.format), 0.0), 0.0) for r in held_out]


def always_lora(_: Sequence[Row], held_out: Sequence[Row]) -> list[Prediction]:
    return [Prediction(row, 0.0, 0.0) for row in held_out]


PREDICTORS: dict[str, Predictor] = {
    "as planned": as_planned,
    "as printed": as_printed,
    "pooled mean": pooled_mean,
    "always LoRA": always_lora,
}


def without(rows: Iterable[Row], held_out: Sequence[Row]) -> list[Row]:
    """The rows of other sources that are no copies of those held out."""
    sources = {row.source for row in held_out}
    copies = {(row.model, row.method, row.value) for row in held_out}
    return [
        r for r in rows if r.source not in sources and (r.model, r.method, r.value) not in copies
    ]


class Pairs(NamedTuple):
    """Pairs of methods in one table, by how prediction and publication order them."""

    concordant: int = 0
    discordant: int = 0
    tied_prediction: int = 0
    tied_publication: int = 0

    def __add__(self, other: "Pairs") -> "Pairs":  # type: ignore[override]
        return Pairs(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def tau(self) -> float | None:
        """Kendall's tau-b; None where either orders nothing."""
        agreed, opposed, predicted, actual = self
        scale = (agreed + opposed + predicted) * (agreed + opposed + actual)
        return (agreed - opposed) / math.sqrt(scale) if scale else None


def tables(found: Sequence[Prediction]) -> list[list[tuple[float, float]]]:
    """(expected, published) of each table's methods, its reference among them."""
    grouped = defaultdict[tuple[str, ...], list[tuple[float, float]]](list)
    for one in found:
        grouped[one.row.table].append((one.expected, one.row.points))
    return [[*entries, (0.0, 0.0)] for entries in grouped.values()]


def pairs(entries: Sequence[tuple[float, float]], least: float = 0.0) -> Pairs:
    """Count the pairs whose published gap is at least that."""
    total = Pairs()
    for (expected, actual), (other_expected, other_actual) in combinations(entries, 2):
        gap, wanted = expected - other_expected, actual - other_actual
        if abs(wanted) < least:
            continue
        if gap and wanted:
            agrees = gap * wanted > 0
            total += Pairs(concordant=int(agrees), discordant=int(not agrees))
        elif wanted:
            total += Pairs(tied_prediction=1)
        elif gap:
            total += Pairs(tied_publication=1)
    return total


def regret(entries: Sequence[tuple[float, float]], tie: float) -> float:
    """Best published less the recommended's; the reference unless another leads by the tie."""
    best = max(entries)
    chosen = best[1] if best[0] > tie else 0.0
    return max(actual for _, actual in entries) - chosen


def score(found: Sequence[Prediction]) -> dict[str, float | None]:
    groups = tables(found)
    wide = sum((pairs(g, TIE_POINTS) for g in groups), Pairs())
    scored = [f for f in found if f.deviation]
    inside = [abs(f.row.points - f.expected) <= 2 * f.deviation for f in scored]
    return {
        "tables": len(groups),
        "rows": len(found),
        "tau": sum((pairs(g) for g in groups), Pairs()).tau,
        "tau beyond noise": wide.tau,
        "regret": statistics.fmean(regret(g, 0.0) for g in groups),
        "regret with ties": statistics.fmean(regret(g, TIE_POINTS) for g in groups),
        "error": statistics.fmean(abs(f.row.points - f.expected) for f in found),
        "within two": statistics.fmean(inside) if inside else None,
    }


COLUMNS = {
    "tables": "tables",
    "rows": "rows",
    "tau": "tau-b",
    "tau beyond noise": f"gaps>={TIE_POINTS:g}",
    "regret": "best",
    "regret with ties": "rule",
    "error": "|error|",
    "within two": "in 2 sd",
}


def line(label: str, scores: Mapping[str, float | None]) -> str:
    cells = (scores[key] for key in COLUMNS)
    return f"{label:<28}" + "".join(f"{shown(cell):>11}" for cell in cells)


def shown(cell: float | None) -> str:
    if cell is None:
        return "-"
    return f"{cell:d}" if isinstance(cell, int) else f"{cell:.2f}"


SUMMARIES = ("all", "independent")
"""Every row held out, and those that no author reports on his own method."""


def predicted(rows: Sequence[Row], predict: Predictor) -> dict[str, list[Prediction]]:
    """By source, each held out in turn."""
    found = {}
    for source in dict.fromkeys(row.source for row in rows):
        held_out = [row for row in rows if row.source == source]
        found[source] = predict(without(published().rows, held_out), held_out)
    return found


def chosen(found: Iterable[Prediction], part: str) -> list[Prediction]:
    return [one for one in found if part == "all" or one.row.self_reported <= 0]


def evaluate(found: Mapping[str, Sequence[Prediction]]) -> dict[str, dict[str, float | None]]:
    """Scores by source held out, and over all of them."""
    every = [one for each in found.values() for one in each]
    summaries = {part: score(chosen(every, part)) for part in SUMMARIES}
    return {source: score(each) for source, each in found.items()} | summaries


COMPARED = ("tau", "regret", "regret with ties")
RESAMPLES = 2000


class Sums(NamedTuple):
    """What a source adds to the scores that are compared."""

    pairs: Pairs
    best: float
    rule: float
    tables: int

    @classmethod
    def of(cls, found: Sequence[Prediction]) -> "Sums":
        groups = tables(found)
        best, rule = (sum(regret(g, tie) for g in groups) for tie in (0.0, TIE_POINTS))
        return cls(sum((pairs(g) for g in groups), Pairs()), best, rule, len(groups))


def compared(drawn: Sequence[Sums]) -> tuple[float, float, float]:
    count = sum(each.tables for each in drawn)
    tau = sum((each.pairs for each in drawn), Pairs()).tau or 0.0
    return tau, sum(s.best for s in drawn) / count, sum(s.rule for s in drawn) / count


def gaps(
    found: Mapping[str, Sequence[Prediction]], other: Mapping[str, Sequence[Prediction]], part: str
) -> list[tuple[float, float, float]]:
    """5th percentile, what is found, and 95th, of each compared score less the other's."""
    draw = random.Random(0)
    sums = [
        (Sums.of(ours), Sums.of(theirs))
        for source in found
        if (ours := chosen(found[source], part)) and (theirs := chosen(other[source], part))
    ]

    def gap(drawn: Sequence[tuple[Sums, Sums]]) -> list[float]:
        ours, theirs = zip(*drawn, strict=True)
        return [a - b for a, b in zip(compared(ours), compared(theirs), strict=True)]

    resampled = zip(*(gap(draw.choices(sums, k=len(sums))) for _ in range(RESAMPLES)), strict=True)
    bounds = [statistics.quantiles(values, n=20) for values in resampled]
    return [(low[0], value, low[-1]) for low, value in zip(bounds, gap(sums), strict=True)]


def gap_line(name: str, part: str, found: Sequence[tuple[float, float, float]]) -> str:
    cells = (
        f"{COLUMNS[key]} {value:+.2f} ({low:+.2f} to {high:+.2f})"
        for key, (low, value, high) in zip(COMPARED, found, strict=True)
    )
    return f"{part}, {name} less pooled mean: " + ", ".join(cells)


def rows_of(path: Path | None) -> list[Row]:
    """The rows to hold out, having printed what is left out of the table and why."""
    if path is None:
        return list(published().rows)
    with path.open(encoding="utf-8") as table:
        rows, left_out = read(table)
    for reason in left_out:
        print(f"left out: {reason}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", nargs="?", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = rows_of(arguments.table)
    found = {name: predicted(rows, predict) for name, predict in PREDICTORS.items()}
    results = {name: evaluate(each) for name, each in found.items()}
    print(f"{'':<28}" + "".join(f"{title:>11}" for title in COLUMNS.values()))
    for source, scores in results["as printed"].items():
        if source not in SUMMARIES:
            print(line(source, scores))
    for part in SUMMARIES:
        for name in PREDICTORS:
            print(line(f"{part}, {name}", results[name][part]))
    for part in SUMMARIES:
        for name in ("as planned", "as printed"):
            print(gap_line(name, part, gaps(found[name], found["pooled mean"], part)))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
