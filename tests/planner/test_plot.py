"""The pictures of a frontier: matplotlib's file and the self-contained page."""

import itertools
import json
import math
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.errors import UsageError
from planner.marks import COLOURS, marks
from planner.page import TEMPLATE, page
from planner.plot import draw, envelope, view
from planner.scale import scale, shown, ticks
from planner.tradeoffs import Axis, Frontier, Point

GIB = 2.0**30
AXES = (
    Axis(key="quality_points", title="quality", unit="points", lower_is_better=False, limit=None),
    Axis(
        key="training_bytes",
        title="training memory",
        unit="bytes",
        lower_is_better=True,
        limit=24 * GIB,
    ),
    Axis(
        key="serving_bytes_per_tenant",
        title="serving memory per tenant",
        unit="bytes",
        lower_is_better=True,
        limit=None,
    ),
    Axis(
        key="latency_seconds",
        title="latency per token",
        unit="seconds",
        lower_is_better=True,
        limit=0.03,
    ),
    Axis(key="storage_bytes", title="storage", unit="bytes", lower_is_better=True, limit=None),
    Axis(
        key="training_seconds",
        title="training time",
        unit="seconds",
        lower_is_better=True,
        limit=None,
    ),
)
# Points against LoRA, trained share of a rank's LoRA parameters, extra activations, half-width.
METHODS = {
    "lora": (0.0, 1.0, 0.0, 1.6),
    "rslora": (0.1, 1.0, 0.01, 1.7),
    "dora": (0.6, 1.02, 0.9, 1.9),
    "pissa": (0.3, 1.0, 0.03, 2.0),
    "lora_plus": (0.2, 1.0, 0.02, 1.8),
    "vera": (-1.3, 0.02, 0.15, 2.2),
    "oft": (-0.4, 1.4, 0.5, 2.3),
    "ia3": (-2.9, 0.01, -0.1, 2.4),
    "bitfit": (-3.6, 0.01, -0.2, 2.6),
    "prefix_tuning": (-7.9, 0.1, -0.1, 3.0),
    "full": (0.9, 60.0, 0.3, 1.8),
}
WEIGHTS = {"bf16": 16.0, "nf4": 5.1}
FORMS = {"unmerged": 1.12, "merged": 1.0}
TARGETS = {"all-linear": (1.0, 0.0), "attention.query, attention.value": (0.25, -1.5)}


def candidates() -> list[tuple[dict[str, object], dict[str, float | None], float]]:
    """Choice, values and half-width for an 8B model and 20 tenants, by rough formulas."""
    found = []
    grid = product(METHODS, (4, 16, 64), WEIGHTS, FORMS, TARGETS, ("none", "block"))
    for method, rank, format_, export, targets, checkpointing in grid:
        points, share, extra, half_width = METHODS[method]
        part, lost = TARGETS[targets]
        full = method == "full"
        if full and (rank, format_, export, part) != (4, "bf16", "merged", 1.0):
            continue
        own = 0.0026 * rank * 4 * share * part
        activations = (9.0 + 2 * extra) * (0.25 if checkpointing == "block" else 1.0)
        merged = export == "merged"
        slope = 0.45 * math.log2(rank / 64) if 0.5 < share < 10 else 0.0
        found.append(
            (
                {
                    "method": method,
                    "rank": None if full else rank,
                    "targets": [targets],
                    "format": format_,
                    "export": export,
                    "precision": "exact",
                    "batch_size": 4,
                    "gradient_accumulation": 4,
                    "checkpointing": checkpointing,
                },
                {
                    "quality_points": points + lost + slope - 0.9 * (format_ == "nf4"),
                    "training_bytes": GIB * (WEIGHTS[format_] + 4 * own + activations),
                    "serving_bytes_per_tenant": GIB * (WEIGHTS[format_] if merged else own),
                    "latency_seconds": None
                    if method == "prefix_tuning"
                    else 0.0016 * WEIGHTS[format_] * FORMS[export] + 0.003 * own,
                    "storage_bytes": GIB * WEIGHTS[format_] * (20 if merged else 1)
                    + 20 * GIB * own / 2 * (not merged),
                    "training_seconds": (5200 + 900 * extra + 30 * rank * part)
                    * (1.3 if checkpointing == "block" else 1.0)
                    * (1.25 if format_ == "nf4" else 1.0),
                },
                half_width,
            )
        )
    return found


def sample() -> Frontier:
    """A frontier as the planner writes it: limits kept or broken, dominance, a choice."""
    found = candidates()
    signs = np.array([1 if axis.lower_is_better else -1 for axis in AXES])
    table = np.array([[v[a.key] or 1.0 for a in AXES] for _, v, _ in found]) * signs
    broken = [
        tuple(
            f"needs {v[a.key]} of {a.title}" for a in AXES if a.limit and (v[a.key] or 0) > a.limit
        )
        for _, v, _ in found
    ]
    feasible = np.array([not b for b in broken])
    points = []
    for index, (candidate, values, half_width) in enumerate(found):
        worse = (table <= table[index]).all(1) & (table < table[index]).any(1) & feasible
        rank = f" r{candidate['rank']}" if candidate["rank"] else ""
        points.append(
            Point(
                id=100 + index,
                label=f"{candidate['method']}{rank} on {candidate['targets'][0]}, "
                f"{candidate['format']} base, {candidate['export']}",
                candidate=candidate,
                values=values,
                quality_half_width=half_width,
                feasible=bool(feasible[index]),
                broken=broken[index],
                on_frontier=bool(feasible[index] and not worse.any()),
                dominated_by=100 + int(np.argmax(worse)) if worse.any() else None,
                evidence_ids=("claim-tuned", "claim-noise"),
            )
        )
    chosen = next(
        p.id
        for p in points
        if p.candidate["method"] == "lora"
        and p.candidate["rank"] == 16
        and p.candidate["export"] == "unmerged"
        and p.feasible
        and p.on_frontier
    )
    return Frontier(
        model="Llama-3.1-8B", task="causal_lm", axes=AXES, points=tuple(points), chosen=chosen
    )


FRONTIER = sample()
ENDINGS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


class Elements(HTMLParser):
    """The names of the elements, and the text of those with an id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.texts: dict[str, str] = {}
        self.open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.open = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self.names.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.texts[self.open] = self.texts.get(self.open, "") + data


def data_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Elements(text).texts["data"])
    return found


def test_the_page_holds_the_whole_frontier() -> None:
    assert Frontier.model_validate(data_of(page(FRONTIER))["frontier"]) == FRONTIER


def test_the_page_asks_nobody_for_anything() -> None:
    text = page(FRONTIER)
    assert not re.search(
        r"https?://|//[a-z]|\bimport\b|fetch\(|url\(|<link|src=", text, re.IGNORECASE
    )
    assert "default-src 'none'" in text


def test_the_page_is_whole_whatever_the_names_are() -> None:
    hostile = "</script><script>alert(1)</script><!--data-->&\u2028'\"<b>"
    point = FRONTIER.points[0].model_copy(update={"label": hostile})
    frontier = FRONTIER.model_copy(update={"model": hostile, "points": (point,)})
    harmless = FRONTIER.model_copy(update={"points": FRONTIER.points[:1]})
    assert Elements(page(frontier)).names == Elements(page(harmless)).names
    assert Elements(page(frontier)).texts["title"].strip() == f"{hostile}: causal_lm"
    assert data_of(page(frontier))["frontier"]["points"][0]["label"] == hostile


def test_every_element_of_the_page_is_closed() -> None:
    names = Counter(Elements(page(FRONTIER)).names)
    alone = {"meta", "input", "path", "br", "hr"}
    opened = {n: c for n, c in names.items() if not n.startswith("/") and n not in alone}
    assert opened == {n[1:]: c for n, c in names.items() if n.startswith("/")}


def test_equal_frontiers_give_equal_pages() -> None:
    assert page(sample()) == page(FRONTIER)


def test_each_method_has_a_mark_of_its_own() -> None:
    found = marks(FRONTIER)
    assert {mark.method for mark in found} == set(METHODS)
    assert len({(mark.colour, mark.shape) for mark in found}) == len(METHODS)
    assert found[0].method == "lora", "the chosen point's method comes first"


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("card", ["#ffffff", "#16191f"])
@pytest.mark.parametrize("colour", COLOURS)
def test_marks_are_seen_on_light_and_dark(colour: str, card: str) -> None:
    """WCAG 2 asks 3:1 of what is not text."""
    dark, light = sorted((luminance(colour), luminance(card)))
    assert card in TEMPLATE.read_text()
    assert (light + 0.05) / (dark + 0.05) >= 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_picture_is_written_the_same_each_time(tmp_path: Path, ending: str) -> None:
    first, second = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    draw(FRONTIER, first)
    draw(sample(), second)
    assert first.read_bytes().startswith(ENDINGS[ending])
    assert len(first.read_bytes()) > 10_000
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("axis", [axis.key for axis in AXES])
def test_every_pair_of_axes_can_be_drawn(tmp_path: Path, axis: str) -> None:
    other = AXES[0].key if axis != AXES[0].key else AXES[1].key
    draw(FRONTIER, tmp_path / "a.svg", x=axis, y=other)
    assert axis_title(axis) in (tmp_path / "a.svg").read_text()


def axis_title(key: str) -> str:
    title = next(axis.title for axis in AXES if axis.key == key)
    return f"<!-- {title[:1].upper()}{title[1:]} ("


@pytest.mark.parametrize("points", [(), FRONTIER.points[:1]])
def test_little_or_nothing_feasible_is_drawn_too(tmp_path: Path, points: tuple[Point, ...]) -> None:
    broken = tuple(
        p.model_copy(
            update={"feasible": False, "on_frontier": False, "broken": ("training memory",)}
        )
        for p in points
    )
    frontier = FRONTIER.model_copy(update={"points": broken, "chosen": None})
    draw(frontier, tmp_path / "a.svg")
    assert "No candidate keeps every limit" in (tmp_path / "a.svg").read_text()
    assert data_of(page(frontier))["frontier"]["chosen"] is None


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot draw 'a.gif'; pictures end in .png, .svg, .pdf"):
        draw(FRONTIER, tmp_path / "a.gif")


def test_an_unknown_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown axis 'speed'; axes are quality_points"):
        draw(FRONTIER, tmp_path / "a.png", x="speed")


def test_without_matplotlib_the_hint_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="needs matplotlib") as caught:
        draw(FRONTIER, tmp_path / "a.png")
    assert "paretune[plot]" in str(caught.value.hint)


def test_the_line_is_the_best_of_what_is_feasible() -> None:
    seen = view(FRONTIER, "training_bytes", "quality_points")
    best = envelope(seen)
    places = [(p.values["training_bytes"] or 0.0, p.values["quality_points"] or 0.0) for p in best]
    assert places == sorted(places)
    assert all(q < r for (_, q), (_, r) in itertools.pairwise(places))
    for point in seen.points:
        if point.feasible:
            memory, quality = point.values["training_bytes"], point.values["quality_points"]
            assert any(m <= memory and q >= quality for m, q in places)


@pytest.mark.parametrize(
    ("unit", "low", "high", "logarithmic", "expected"),
    [
        ("bytes", 5 * GIB, 25 * GIB, False, [8 * GIB, 12 * GIB, 16 * GIB, 20 * GIB, 24 * GIB]),
        ("bytes", 0.9 * GIB, 9 * GIB, True, [GIB, 2 * GIB, 4 * GIB, 8 * GIB]),
        ("seconds", 0.008, 0.031, False, [0.01, 0.015, 0.02, 0.025, 0.03]),
        ("seconds", 3000, 11000, False, [3600, 5400, 7200, 9000, 10800]),
        ("points", -3.9, 1.1, False, [-3, -2, -1, 0, 1]),
    ],
)
def test_ticks_are_round(
    unit: str, low: float, high: float, logarithmic: bool, expected: list[float]
) -> None:
    assert ticks(unit, low, high, logarithmic=logarithmic) == pytest.approx(expected)


def test_a_scale_shows_a_limit_and_a_broken_value_only_when_near() -> None:
    near, far = (AXES[1].model_copy(update={"limit": n * GIB}) for n in (24, 80))
    feasible = [8 * GIB, 20 * GIB]
    assert scale(near, feasible).high > 24 * GIB
    assert scale(far, feasible).high < 24 * GIB
    assert scale(near, feasible, [26 * GIB, 300 * GIB]).high == pytest.approx(26.9 * GIB)


def test_shown_values() -> None:
    given = [("bytes", 4 * GIB), ("seconds", 0.03), ("seconds", 1800), ("points", -2.0)]
    assert [shown(unit, value) for unit, value in given] == ["4 GiB", "30 ms", "30 min", "−2"]
