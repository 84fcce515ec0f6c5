"""Whole explanations: of the demo, of the scenarios of test_scenarios.py, of what cannot be had.

NAME.txt is what `planner recommend specs/examples/NAME.json` prints, NAME.all.txt the same with
--include-unbuildable. After an intended change:

  for f in tests/planner/golden/*.txt; do n=$(basename $f .txt); a=${n%.all}; flag=
    [ $n = $a ] || flag=--include-unbuildable
    planner recommend specs/examples/$a.json $flag > $f 2>&1; done
"""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner import catalog
from planner.cli import main
from planner.documents import load_spec
from planner.errors import InfeasibleError
from planner.plan import Plan
from planner.quality import unranked
from planner.recommendation import recommend
from planner.render import render
from planner.spec import Spec

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.txt")), ids=lambda file: file.stem)
def test_explanation_is_the_golden_one(file: Path) -> None:
    name = file.stem.removesuffix(".all")
    flags = ["--include-unbuildable"] if file.stem != name else []
    spec = catalog.specs_folder() / "examples" / f"{name}.json"
    found = CliRunner().invoke(main, ["recommend", str(spec), *flags])
    assert found.output == file.read_text()


def test_a_pinned_method_that_nothing_compares_is_of_unknown_quality() -> None:
    spec = load_spec(catalog.specs_folder() / "examples" / "smollm2-tenants.json")
    pinned = spec.model_copy(update={"pinned": spec.pinned.model_copy(update={"method": "olora"})})
    choice = next(r for r in recommend(pinned, unbuildable=True).reasons if "the choice is" in r)
    assert choice.endswith(f"of unknown quality: {unranked('olora')}")


def plan_of(*, unbuildable: bool = False, **fields: object) -> Plan:
    spec = {"model": "smollm2-135m", "task": "causal_lm", "vram_gib": 16}
    return recommend(Spec.model_validate(spec | fields), unbuildable=unbuildable)


@pytest.mark.parametrize(
    ("method", "size"),
    [("oft", "block size"), ("prompt_tuning", "virtual tokens"), ("vera", "rank")],
)
def test_a_size_is_called_what_it_counts(method: str, size: str) -> None:
    plan = plan_of(unbuildable=True, pinned={"method": method})
    assert any(r.endswith(f"so the {size} is {plan.candidate.rank}") for r in plan.reasons)


def test_a_rate_of_no_pair_is_kept_at_every_width() -> None:
    for method, rate in (("bitfit", 0.001), ("prompt_tuning", 0.01)):
        reasons = plan_of(unbuildable=True, pinned={"method": method}).reasons
        said = next(reason for reason in reasons if "learning rate" in reason)
        assert "trains neither pairs nor whole weights" in said
        assert f"its rate of {rate:g} is kept" in said


def test_a_rate_says_where_the_rule_ends() -> None:
    reasons = plan_of(model="all-minilm-l6-v2", task="sequence_classification").reasons
    assert any("to at most 5 times, and this width is 384" in reason for reason in reasons)


def test_a_method_without_linears_is_on_none() -> None:
    text = render(plan_of(unbuildable=True, pinned={"method": "prompt_tuning"}))
    assert re.search(r"method +prompt tuning, virtual tokens \d+\n", text)


def test_only_what_was_weighed_is_said_to_tie() -> None:
    def rejected(**fields: object) -> list[str]:
        return [rejection.reason for rejection in plan_of(**fields).rejections]

    unknown = rejected()
    assert any("memory ties as well, and the choice is the simpler" in r for r in unknown)
    assert not any("latency" in r for r in unknown)
    known = rejected(training={"hardware": "l4"})
    assert any("memory and latency tie as well" in r for r in known)
    simple = rejected(priority="simplicity")
    assert any(r.endswith("and the choice is the simpler") for r in simple)
    assert not any("tie as well" in r or "ties as well" in r for r in simple)


def test_what_is_worse_is_not_given_up_for_the_priority() -> None:
    for rejection in plan_of(priority="simplicity").rejections:
        assert not re.search(r"-\d.* is given up", rejection.reason)


def test_equals_to_the_end_are_said_to_be_equal() -> None:
    fields = {"model": "bert-base", "task": "sequence_classification", "vram_gib": 8}
    found = {r.candidate: r.reason for r in plan_of(**fields).rejections}
    other = "lora r16 on all-linear, bf16 base, unmerged"
    assert found[other].endswith("and the choice, as simple, came first")


def test_a_base_that_changes_nothing_is_said_to_change_nothing() -> None:
    """Full fine-tuning holds fp32 either way."""
    plan = plan_of(pinned={"method": "full"}, training={"hardware": "a100-80gb"})
    said = "neither the expected quality of a 135M model nor its training memory, so the base is"
    assert any(said in reason for reason in plan.reasons)


@pytest.mark.parametrize(
    ("tenants", "said"),
    [
        (1, "the tenant adds 18.7 MiB to the bank and leaves the base as it is"),
        (2000, "2,000 tenants can share one base, and a tenant adds 18.7 MiB"),
    ],
)
def test_tenants_are_counted_where_there_are_several(tenants: int, said: str) -> None:
    plan = plan_of(
        serving={"tenants": tenants, "active_tenants": 1},
        pinned={"export": "unmerged", "method": "lora", "rank": 16},
    )
    assert any(said in reason for reason in plan.reasons)


@pytest.mark.parametrize(
    ("limit", "broken", "relaxed"),
    [
        (
            "first_token_ms",
            r"takes [\d.]+ m?s to the first token where",
            r"\d+ ms to the first token",
        ),
        ("per_token_ms", r"takes [\d.]+ m?s per token where the limit", r"\d+ ms per token"),
    ],
)
def test_a_broken_time_reads_as_one(limit: str, broken: str, relaxed: str) -> None:
    with pytest.raises(InfeasibleError, match=broken) as raised:
        plan_of(serving={"hardware": "raspberry-pi-5", limit: 1})
    assert re.search(relaxed, str(raised.value.hint))


def test_every_example_has_a_golden_explanation() -> None:
    explained = {file.stem.removesuffix(".all") for file in GOLDEN.glob("*.txt")}
    assert explained == set(catalog.names("examples"))


def test_the_readme_shows_what_is_printed() -> None:
    """The lines of its excerpt, in order; "…" stands for what is left out."""
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    excerpt = text.partition("smollm2-tenants.json` (shortened):\n\n")[2].partition(
        "\n\n`make demo`"
    )[0]
    shown = [
        line.removeprefix("    ") for line in excerpt.splitlines() if line.strip() not in ("", "…")
    ]
    printed = iter((GOLDEN / "smollm2-tenants.txt").read_text("utf-8").splitlines())
    missing = [line for line in shown if line not in printed]
    assert len(shown) > 20
    assert missing == []
