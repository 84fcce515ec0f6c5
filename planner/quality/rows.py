"""The published differences: one row is one method against a reference in the same table.

To add one, append it to planner/evidence/rows.json and run `python -m planner.quality.refit`.
"""

import json
from collections import Counter
from functools import cache
from typing import NamedTuple

from planner.quality.causes import EVEN_POINTS, log_odds, sensitivity, shortage
from planner.quality.expected import EVIDENCE


class Row(NamedTuple):
    """One published result; sizes are millions of trained parameters, None where not stated.

    `self_reported` is 1 where the paper is the method's own, -1 where it is the reference's own.
    `rate` says how the source set learning rates: "tuned" by method, "fixed", or "low", fixed below
    LoRA's best. `examples` and `bits` are of the training data; `family` is the spec's.
    """

    id: str
    source: str
    model: str
    parameters_b: float
    family: str
    data: str | None
    metric: str
    method: str
    size_m: float | None
    format: str
    value: float
    reference: str
    reference_size_m: float | None
    reference_format: str
    reference_value: float
    self_reported: int
    rate: str
    examples: int | None
    bits: float | None

    @property
    def points(self) -> float:
        return self.value - self.reference_value

    @property
    def effect(self) -> float:
        """The difference in log-odds, as points at a score of 50."""
        return EVEN_POINTS * (log_odds(self.value) - log_odds(self.reference_value))

    @property
    def study(self) -> str:
        """A method in a source: what a plan cites."""
        return study_name(self.method, self.source)

    @property
    def table(self) -> tuple[str, ...]:
        """What shares one run of the reference."""
        return (self.source, self.model, self.data or "", self.metric, str(self.reference_value))

    @property
    def shortage(self) -> float:
        """Doublings short of the data beyond the reference's; 0 where the sizes are unknown."""
        if self.size_m is None or self.reference_size_m is None or self.bits is None:
            return 0.0
        theirs = shortage(self.reference_size_m * 1e6, self.bits)
        return shortage(self.size_m * 1e6, self.bits) - theirs


def study_name(method: str, source: str) -> str:
    return f"{method.replace('_', '-')}-{source}"


class Evidence(NamedTuple):
    """All rows, the class of each method, and the title of each source."""

    rows: tuple[Row, ...]
    classes: dict[str, str]
    titles: dict[str, str]


@cache
def published() -> Evidence:
    """The curated rows, for fitting; planning reads the posterior only."""
    text = json.loads((EVIDENCE / "rows.json").read_text(encoding="utf-8"))
    rows = []
    counted: Counter[str] = Counter()
    for cells in text["rows"]:
        fields = dict(zip(text["columns"], cells, strict=True))
        data = text["data"].get(fields["data"])
        name = study_name(fields["method"], fields["source"])
        counted[name] += 1
        rows.append(
            Row(
                **fields,
                id=f"{name}-{counted[name]}",
                rate=text["sources"][fields["source"]]["rate"],
                examples=data and data["examples"],
                bits=data and data["examples"] * data["bits_per_example"],
            )
        )
    classes = {method: name for name, members in text["classes"].items() for method in members}
    titles = {key: source["title"] for key, source in text["sources"].items()}
    return Evidence(tuple(rows), classes, titles)


TEST_SET_SIZES = {
    "GSM8K": 1319,
    "MATH": 5000,
    "HumanEval": 164,
    "MBPP": 500,
    "MMLU 5-shot": 14042,
    "BoolQ": 3270,
    "MNLI-m acc": 9815,
    "WikiSQL acc": 8421,
}
JUDGED_POINTS = 2.0
"""Of MT-Bench's 80 questions, times ten; assumed."""
REPEAT_POINTS = 0.8
"""Of repeats of one configuration (claim-noise)."""


def run_variance(metric: str, score: float) -> float:
    """Of one run, at a score of 50: repeats, and the error of its test set where it is one."""
    fade = sensitivity(score)
    if metric == "MT-Bench":
        return (REPEAT_POINTS**2 + JUDGED_POINTS**2) / fade**2
    size = TEST_SET_SIZES.get(metric)
    binomial = EVEN_POINTS * 100.0 * fade / size if size else 0.0
    return (REPEAT_POINTS**2 + binomial) / fade**2
