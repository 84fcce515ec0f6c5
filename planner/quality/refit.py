"""Fits the published differences and writes what planning reads of them.

python -m planner.quality.refit     writes planner/evidence/posterior.json
"""

import json
import statistics
from collections.abc import Iterable, Mapping
from typing import get_args

from planner.quality.causes import (
    LARGE_PROMPTED_B,
    LARGE_QUANTISED_B,
    REFERENCE,
    SMALL_QUANTISED_B,
)
from planner.quality.expected import EVIDENCE
from planner.quality.posterior import (
    Posterior,
    Terms,
    capacity_terms,
    fit,
    format_terms,
    method_terms,
    rate_points,
)
from planner.quality.rows import Evidence, Row, published
from planner.spec import Family

FAMILIES: tuple[str, ...] = get_args(Family)
Pair = list[float]


def summary(evidence: Evidence) -> dict[str, object]:
    """What planning reads: estimates at each family's typical score, and the studies behind."""
    found = fit(evidence.rows, evidence.classes)
    methods = sorted({row.method for row in evidence.rows} - {REFERENCE})
    return {
        "scores": typical_scores(evidence.rows),
        "methods": {m: estimates(found, m) for m in methods},
        "capacity": {
            f: rounded(found.expect({k: -w for k, w in capacity_terms(f, 1.0).items()}))
            for f in FAMILIES
        },
        "formats": {
            format_ + suffix: {
                f: rounded(found.expect(format_terms(format_, f, size, encoder=False)))
                for f in FAMILIES
            }
            for suffix, size in (("", LARGE_QUANTISED_B), (" small", SMALL_QUANTISED_B))
            for format_ in ("nf4", "fp4", "int8")
        },
        "inflation": rounded(found.expect({("inflation",): 1.0})),
        "studies": studies(evidence),
    }


def rounded(estimate: tuple[float, float]) -> Pair:
    return [round(number, 3) for number in estimate]


def typical_scores(rows: Iterable[Row]) -> dict[str, float]:
    """Median score of the references of each family."""
    scores = {f: [r.reference_value for r in rows if r.family == f] for f in FAMILIES}
    return {family: round(statistics.median(found)) for family, found in scores.items()}


def estimates(found: Posterior, method: str) -> dict[str, object]:
    """A method's effect in each family, with few examples per tenfold, and by scale."""
    kind = found.classes[method]
    scarce: Terms = {("few", kind): 1.0, ("few method", method): 1.0}
    known: dict[str, object] = {
        "class": kind,
        "rate": rate_points(kind),
        "effects": {
            f: rounded(found.expect(method_terms(method, kind, f, None, LARGE_PROMPTED_B)))
            for f in FAMILIES
        },
        "few": rounded(found.expect(scarce)),
    }
    if kind == "prompt":
        known["scale"] = rounded(found.expect({("scale",): 1.0}))
    return known


def studies(evidence: Evidence) -> list[dict[str, object]]:
    """What plans cite: each method in each source, with its mean difference."""
    grouped: dict[str, list[Row]] = {}
    for row in evidence.rows:
        grouped.setdefault(row.study, []).append(row)
    return [
        {
            "id": name,
            "method": rows[0].method,
            "reference": rows[0].reference,
            "points": round(statistics.fmean(row.points for row in rows), 2),
            "results": len(rows),
            "families": sorted({row.family for row in rows}),
            "self_reported": any(row.self_reported > 0 for row in rows),
            "rate": rows[0].rate,
            "source": evidence.titles[rows[0].source],
        }
        for name, rows in grouped.items()
    ]


def document() -> str:
    """The text of posterior.json: one line per entry."""
    sections = []
    for name, content in summary(published()).items():
        sections.append(f"  {json.dumps(name)}: {block(content)}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def block(content: object) -> str:
    if isinstance(content, Mapping):
        lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
        return "{\n" + ",\n".join(lines) + "\n  }"
    if isinstance(content, list) and content and isinstance(content[0], Mapping):
        return "[\n" + ",\n".join(f"    {json.dumps(entry)}" for entry in content) + "\n  ]"
    return json.dumps(content)


if __name__ == "__main__":
    (EVIDENCE / "posterior.json").write_text(document(), encoding="utf-8")
