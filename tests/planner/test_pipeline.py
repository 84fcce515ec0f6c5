"""The example of tests/demo/pipeline.py: new, unchanged, moved and infeasible specs."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    path = Path(__file__).parents[1] / "demo" / "pipeline.py"
    spec = importlib.util.spec_from_file_location("pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_moved_choice_stops_the_pipeline(
    pipeline: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specs, plans = tmp_path / "specs", tmp_path / "plans"
    specs.mkdir()
    document = {"model": "llama-3.1-8b", "task": "causal_lm", "vram_gib": 24}
    file = specs / "acme.json"
    file.write_text(json.dumps(document))
    assert pipeline.main(specs, plans) == 0
    assert pipeline.main(specs, plans) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "acme: unchanged"
    file.write_text(json.dumps(document | {"pinned": {"method": "ia3"}}))
    assert pipeline.main(specs, plans) == 5
    assert ", is now ia3 on " in capsys.readouterr().out
    file.write_text(json.dumps(document | {"vram_gib": 2}))
    assert pipeline.main(specs, plans) == 3
    assert "feasible with" in capsys.readouterr().out
