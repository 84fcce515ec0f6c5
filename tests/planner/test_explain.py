"""Whole explanations: of the demo, of the scenarios of test_scenarios.py, of what cannot be had.

NAME.txt is what `planner recommend specs/examples/NAME.json` prints, NAME.all.txt the same with
--include-unbuildable. After an intended change:

  for f in tests/planner/golden/*.txt; do n=$(basename $f .txt); a=${n%.all}; flag=
    [ $n = $a ] || flag=--include-unbuildable
    planner recommend specs/examples/$a.json $flag > $f 2>&1; done
"""

from pathlib import Path

import pytest
from click.testing import CliRunner

from planner import catalog
from planner.cli import main
from planner.documents import load_spec
from planner.quality import unranked
from planner.recommendation import recommend

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
