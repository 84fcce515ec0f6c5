"""A completed build is kept beside what its plan predicted."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from compiler.cli import main
from compiler.measured import measured, record
from compiler.train import Trained
from planner.documents import load_plan
from planner.plan import Plan
from planner.store import FILE, read

RUN = Trained(
    tensors={},
    history=(),
    steps=10,
    best_step=10,
    stopped_early=False,
    peak_bytes=2**30,
    step_seconds=0.5,
    seconds=7.0,
)


@pytest.fixture(scope="module")
def place(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    toy.write_place(folder, max_steps=4)
    return folder


@pytest.fixture(scope="module")
def plan(place: Path) -> Plan:
    return load_plan(place / "plan.json")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARETUNE_HOME", str(tmp_path))
    return tmp_path


def test_a_build_appends_every_tenant_it_trains(
    place: Path, plan: Plan, home: Path, toy: ModuleType
) -> None:
    result = CliRunner().invoke(main, toy.build_words(place, home / "out"))
    assert result.exit_code == 0, result.output
    kept = read(home / FILE)
    steps = [build for build in kept if build.quantity == "training.step_seconds"]
    totals = [build for build in kept if build.quantity == "training.total_seconds"]
    assert len(steps) == len(totals) == 2
    predicted = plan.figures["training.step_seconds"].value
    for step, total in zip(steps, totals, strict=True):
        assert (step.hardware, step.method) == ("cpu-2core", "lora")
        assert step.predicted == predicted
        assert total.predicted == pytest.approx(4 * step.predicted)
        assert 0 < step.measured < total.measured < 60


def test_whole_time_is_held_against_the_steps_there_were(plan: Plan) -> None:
    step, total = measured(plan, RUN)
    assert (step.measured, total.measured) == (0.5, 7.0)
    assert total.predicted == pytest.approx(10 * step.predicted)


def test_a_resumed_run_is_not_kept(plan: Plan) -> None:
    assert measured(plan, replace(RUN, resumed=True)) == []
    assert [b.quantity for b in measured(plan, replace(RUN, step_seconds=None))] == [
        "training.total_seconds"
    ]


def test_nothing_is_learned_of_a_device_that_the_plan_left_open(plan: Plan) -> None:
    training = plan.spec.training.model_copy(update={"hardware": None})
    spec = plan.spec.model_copy(update={"training": training})
    assert measured(plan.model_copy(update={"spec": spec}), RUN) == []


def test_a_correction_is_not_learned_upon_itself(plan: Plan) -> None:
    before = plan.figures["training.step_seconds"]
    corrected = before.model_copy(update={"value": 100.0})
    figures = plan.figures | {
        "training.step_seconds": corrected,
        "training.uncorrected_step_seconds": before,
    }
    step, _ = measured(plan.model_copy(update={"figures": figures}), RUN)
    assert step.predicted == before.value


def test_a_store_that_cannot_be_written_is_said(plan: Plan, home: Path) -> None:
    (home / FILE).write_text("no database" * 1000)
    said: list[str] = []
    record(plan, [RUN], said.append)
    assert len(said) == 1
    assert FILE in said[0]
