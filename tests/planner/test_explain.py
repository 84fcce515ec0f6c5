"""Whole explanations of three scenarios.

smollm2-tenants      two tenants on a 135M model, two CPU cores, 16 GiB: everything fits
llama-3.1-8b-24gb    twelve tenants on one L4: memory decides between formats
infeasible-8b-6gb    8B weights in 6 GiB: nothing fits, three relaxations at most

After an intended change: planner recommend specs/examples/NAME.json > tests/planner/golden/NAME.txt
"""

from pathlib import Path

import pytest
from click.testing import CliRunner

from planner import catalog
from planner.cli import main

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.txt")), ids=lambda file: file.stem)
def test_explanation_is_the_golden_one(file: Path) -> None:
    spec = catalog.specs_folder() / "examples" / f"{file.stem}.json"
    found = CliRunner().invoke(main, ["recommend", str(spec)])
    assert found.output == file.read_text()


def test_golden_files_exist() -> None:
    assert len(list(GOLDEN.glob("*.txt"))) == 3
