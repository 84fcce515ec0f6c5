"""Expected quality: what must hold of the estimates, and that they are what the rows give."""

import importlib.util
import json
import math
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from planner.method import methods
from planner.quality import (
    TIE_POINTS,
    claims,
    data_bits,
    evidence,
    format_quality,
    method_quality,
    noise,
    rank_quality,
    steps_share,
    target_quality,
    unranked,
)
from planner.quality.causes import few, log_odds, scale, sensitivity, shortage, smallness
from planner.quality.expected import EVIDENCE, summary
from planner.quality.posterior import causes, fit, method_terms
from planner.quality.refit import document
from planner.quality.rows import Row, published
from planner.spec import Family

FAMILIES = get_args(Family)
RANKED = sorted(summary()["methods"])


@pytest.fixture(scope="module")
def written() -> dict[str, object]:
    found: dict[str, object] = json.loads((EVIDENCE / "posterior.json").read_text())
    return found


def numbers(content: object) -> list[float]:
    """Every number of a document, in order."""
    if isinstance(content, dict):
        return [n for value in content.values() for n in numbers(value)]
    if isinstance(content, list):
        return [n for value in content for n in numbers(value)]
    return [content] if isinstance(content, int | float) else []


def shape(content: object) -> object:
    """A document without its numbers."""
    if isinstance(content, dict):
        return {key: shape(value) for key, value in content.items()}
    if isinstance(content, list):
        return [shape(value) for value in content]
    return None if isinstance(content, int | float) else content


def test_posterior_file_is_what_the_rows_give(written: dict[str, object]) -> None:
    """After a change of the rows: python -m planner.quality.refit."""
    fitted = json.loads(document())
    assert shape(fitted) == shape(written)
    assert numbers(fitted) == pytest.approx(numbers(written), abs=2e-3)


def test_evidence_is_small_and_every_row_names_its_source() -> None:
    assert sum(file.stat().st_size for file in EVIDENCE.glob("*.json")) < 150_000
    found = published()
    assert len({row.id for row in found.rows}) == len(found.rows)
    for row in found.rows:
        assert found.titles[row.source]
        assert row.method in found.classes, row.id
        assert 0 <= row.value <= 100, row.id
        assert math.isfinite(row.effect), row.id


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", RANKED)
def test_every_cited_id_exists(name: str, family: str) -> None:
    known = set(claims()) | {study["id"] for study in evidence()}
    found = method_quality(name, family)
    assert found is not None
    assert set(found.evidence_ids) <= known
    assert any(i not in claims() for i in found.evidence_ids), "no study is cited"
    assert found.half_width > 0


def test_cited_claims_exist() -> None:
    for family in FAMILIES:
        for term in (
            rank_quality(family, 1e6, 1e9, trains_base=False),
            format_quality(family, "nf4", 1e9),
            target_quality(frozenset({"attention.query"}), adapts_all=False),
            noise(),
        ):
            assert set(term.evidence_ids) <= set(claims())


@pytest.mark.parametrize("name", ["mole", "eva", "no_such_method"])
def test_a_method_that_nothing_compares_is_refused(name: str) -> None:
    assert method_quality(name) is None
    assert name in unranked(name)


def test_every_buildable_method_is_known_or_refused_with_a_reason() -> None:
    for name in methods():
        assert method_quality(name) is not None or unranked(name)


def test_lora_and_qlora_are_the_reference() -> None:
    for name in ("lora", "qlora"):
        found = method_quality(name)
        assert found is not None
        assert (found.points, found.half_width) == (0.0, 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_more_parameters_never_lose_more(family: str) -> None:
    bits = data_bits(family, 100_000, 500)
    found = [rank_quality(family, 10.0**n, bits, trains_base=False) for n in range(3, 11)]
    assert all(a.points <= b.points for a, b in pairwise(found))
    assert all(a.half_width >= b.half_width for a, b in pairwise(found))
    assert all(term.points <= 0 for term in found)
    assert found[-1].points > -0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_more_data_never_loses_less(family: str) -> None:
    sizes = (10, 1000, 100_000, 10_000_000)
    found = [
        rank_quality(family, 1e6, data_bits(family, n, 200), trains_base=False).points
        for n in sizes
    ]
    assert all(a >= b for a, b in pairwise(found))


def test_full_fine_tuning_lacks_no_capacity() -> None:
    assert rank_quality("code", 1.0, 1e12, trains_base=True).points == 0.0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format_", ["nf4", "fp4", "int8"])
def test_a_quantised_base_gains_nothing_and_small_ones_lose_more(family: str, format_: str) -> None:
    found = [format_quality(family, format_, size).points for size in (70e9, 7e9, 1e9, 135e6)]
    assert all(points <= 0.2 for points in found)
    assert all(a >= b - 0.2 for a, b in pairwise(found))
    assert format_quality(family, "bf16", 7e9).points == 0.0


def test_four_bits_on_a_small_decoder_lose_more_than_a_tie() -> None:
    assert format_quality("instruction", "nf4", 135e6).points < -2 * TIE_POINTS
    assert format_quality("instruction", "nf4", 80e6, decoder=False).points > -1.0


def test_variants_of_lora_tie_with_it_and_prompts_do_not() -> None:
    for name in ("dora", "pissa", "rslora", "lora_plus", "adalora", "loftq", "qpissa"):
        found = method_quality(name, "math")
        assert found is not None
        assert abs(found.points) < TIE_POINTS, name
    prompt = method_quality("prompt_tuning", "math")
    assert prompt is not None
    assert prompt.points < -TIE_POINTS


def test_prompts_gain_from_scale_and_lose_from_few_examples() -> None:
    def points(parameters: float, examples: int) -> float:
        found = method_quality("prompt_tuning", "classification", parameters, examples)
        assert found is not None
        return found.points

    assert points(0.3e9, 10_000) < points(10e9, 10_000) == points(100e9, 10_000)
    assert points(7e9, 50) < points(7e9, 10_000)


def test_methods_that_need_tuned_rates_have_wider_bands() -> None:
    dora, ia3 = method_quality("dora", "math"), method_quality("ia3", "math")
    assert dora is not None
    assert ia3 is not None
    assert ia3.half_width > dora.half_width


def row(number: int, *, source: str, own: int, value: float = 54.0) -> Row:
    """A method that leads LoRA by `value` - 50 points on a large test set."""
    return Row(
        id=f"dora-{number}",
        source=source,
        model=f"model {number}",
        parameters_b=7.0,
        family="math",
        data=None,
        metric="mean of many",
        method="dora",
        size_m=None,
        format="16-bit",
        value=value,
        reference="lora",
        reference_size_m=None,
        reference_format="16-bit",
        reference_value=50.0,
        self_reported=own,
        rate="tuned",
        examples=None,
        bits=None,
    )


def estimate(rows: list[Row]) -> tuple[float, float]:
    found = fit(rows, {"dora": "low rank", "lora": "low rank"})
    return found.expect(method_terms("dora", "low rank", "math", None, 7.0))


def test_self_reported_rows_move_the_estimate_less() -> None:
    independent, _ = estimate([row(1, source="a", own=0)])
    own, _ = estimate([row(1, source="a", own=1)])
    assert 0 < own < 0.6 * independent < independent < 4.0


def test_a_second_laboratory_moves_it_more_than_a_second_table() -> None:
    one, one_width = estimate([row(1, source="a", own=0)])
    same, same_width = estimate([row(1, source="a", own=0), row(2, source="a", own=0)])
    other, other_width = estimate([row(1, source="a", own=0), row(2, source="b", own=0)])
    assert one < same < other
    assert one_width > same_width > other_width


def test_a_run_far_off_is_taken_for_one_that_failed() -> None:
    def with_third(value: float) -> float:
        agreeing = [row(1, source="a", own=0, value=51.0), row(2, source="b", own=0, value=51.0)]
        return estimate([*agreeing, row(3, source="c", own=0, value=value)])[0]

    assert with_third(51.0) < with_third(54.0)
    assert with_third(54.0) > with_third(85.0) > 0


def test_no_rows_leave_the_prior() -> None:
    mean, width = estimate([row(1, source="a", own=0, value=50.0)])
    assert mean == pytest.approx(0.0, abs=1e-9)
    assert 0 < width < 3


def test_published_gains_are_inflated() -> None:
    inflation, width = summary()["inflation"]
    assert inflation > 2 * width > 0


def test_a_faster_start_is_half_believed() -> None:
    assert steps_share("lora_plus") == 0.75
    assert steps_share("lora") == steps_share("ia3") == 1.0
    assert "claim-convergence" in claims()


def test_reference_run_is_subtracted_from_the_other_reference() -> None:
    against_full = row(1, source="a", own=0)._replace(reference="full")
    terms = causes(against_full, published().classes)
    assert terms["class", "full"] == -1.0
    assert terms["class", "low rank"] == 1.0


def test_causes_as_numbers() -> None:
    assert data_bits("math", 1000, 200) == 200_000
    assert data_bits("classification", 1000, 200, 4) == 2000
    assert shortage(1e6, 0.5e6) == pytest.approx(1.0)
    assert (few(10_000), few(100), few(None)) == (0.0, 2.0, 0.0)
    assert (scale(100.0), scale(1.0)) == (0.0, -1.0)
    assert smallness(0.135) == pytest.approx(1.0)
    assert smallness(70.0) == 0.0
    assert log_odds(50.0) == 0.0
    assert sensitivity(50.0) == 1.0
    assert sensitivity(90.0) == pytest.approx(0.36)


RANKING = Path(__file__).parents[1] / "bench" / "bench_ranking.py"
TABLE = """\
source,base_model,params_b,task_type,train_data,train_samples,metric,method,family,self_reported,\
rank,size,value,lora_ref_rank,lora_ref_size,lora_ref_value
LoRA (2106.09685),GPT-3,175.3,NLU,,,acc,Full FT,Full FT,False,,,90.0,,,91.0
DoRA (2402.09353v6),LLaMA-7B,6.74,chat,,,MT-Bench,DoRA,DoRA,True,64,,5.5,,,5.1
DoRA (2402.09353v6),LLaMA-7B,6.74,chat,,,MT-Bench,VeRA,VeRA,False,64,,4.3,,,5.1
"""


@pytest.fixture(scope="module")
def ranking() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_ranking", RANKING)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_held_out_tables_say_whose_method_each_row_is(ranking: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    with path.open() as table:
        rows, left_out = ranking.read(table)
    assert left_out == []
    assert [(r.method, r.self_reported) for r in rows] == [("full", -1), ("dora", 1), ("vera", 0)]


def test_regret_by_the_rule_is_loras_within_a_tie(ranking: ModuleType) -> None:
    entries = [(1.9, 3.0), (-1.0, 4.0), (0.0, 0.0)]
    assert ranking.regret(entries, 0.0) == 1.0
    assert ranking.regret(entries, TIE_POINTS) == 4.0
    assert ranking.regret([(2.1, 3.0), *entries[1:]], TIE_POINTS) == 1.0
