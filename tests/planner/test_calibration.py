"""This machine timed and stored, and what its builds teach."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner import catalog
from planner.calibration import FILE, Calibration, local, measure, save, stored, this_machine
from planner.calibration_builds import (
    LEAST_BUILDS,
    correction,
    hardware_key,
    learn,
    learn_from_builds,
)
from planner.cli import main
from planner.errors import UsageError
from planner.recommendation import recommend
from planner.spec import Hardware, Spec
from planner.store import Build, append

STEP = "training.step_seconds"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARETUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def quick() -> Calibration:
    return measure(quick=True)


def builds(*ratios: float, quantity: str = STEP, hardware: str = "cpu-2core") -> list[Build]:
    processor = this_machine().processor
    return [Build(processor, hardware, "lora", quantity, 2.0, 2.0 * ratio) for ratio in ratios]


def test_rates_are_those_of_a_machine_that_exists(quick: Calibration) -> None:
    device = quick.hardware
    assert device.measured
    assert device.kind == "cpu"
    assert 1e-4 < (device.fp32_tflops or 0) < 100
    assert 0.1 < (device.bandwidth_gb_per_second or 0) < 10_000
    product, stream = quick.timings
    assert device.fp32_tflops == product.amount / product.seconds / 1e12
    assert stream.unit == "bytes"


def test_local_is_this_machine_once_it_was_measured(quick: Calibration, home: Path) -> None:
    with pytest.raises(UsageError, match="has not been measured") as raised:
        catalog.hardware("local")
    assert raised.value.hint == "planner calibrate"
    assert save(quick) == home / FILE
    assert stored() == quick
    assert catalog.hardware("local") == quick.hardware
    assert [path.name for path in home.iterdir()] == [FILE]


def test_a_measurement_of_another_machine_is_refused(quick: Calibration) -> None:
    other = quick.machine.model_copy(update={"processor": "abacus"})
    save(quick.model_copy(update={"machine": other}))
    with pytest.raises(UsageError, match="was measured on 'abacus'"):
        local()


def test_a_damaged_measurement_is_named(home: Path) -> None:
    home.mkdir()
    (home / FILE).write_text('{"schema_version": 2}')
    with pytest.raises(UsageError, match=FILE):
        local()


def test_a_plan_for_this_machine_has_measured_times(quick: Calibration) -> None:
    save(quick)
    plan = recommend(spec("local"))
    figure = plan.figures[STEP]
    assert figure.evidence == "measured"
    assert "timed on the device itself" in figure.source
    served = plan.figures["latency.per_token_seconds"]
    assert served.evidence == "assumed"
    assert "timed on the device itself, the host's seconds per kernel (assumed)" in served.source
    assert recommend(spec("cpu-2core")).figures[STEP].evidence == "assumed"


def spec(hardware: str) -> Spec:
    return Spec.model_validate(
        {
            "model": "smollm2-135m",
            "task": "causal_lm",
            "vram_gib": 1,
            "training": {"hardware": hardware},
            "data": {"mean_tokens": 16},
            "pinned": {"method": "lora", "rank": 8, "targets": ["all-linear"]},
        }
    )


def test_the_factor_is_the_median_on_a_logarithmic_scale() -> None:
    """1.1, 1.2 and one odd build of 9: the middle one, with a band that holds the like of it."""
    found, short = learn(builds(1.1, 9.0, 1.2))
    assert short == []
    (taught,) = found.corrections
    assert taught.factor == pytest.approx(1.2)
    assert taught.builds == 3
    spread = 1.4826 * math.log(1.2 / 1.1) * math.sqrt(1 + 1 / 3)
    assert taught.low == pytest.approx(1.2 * math.exp(-2 * spread))
    assert taught.high == pytest.approx(1.2 * math.exp(2 * spread))


def test_equal_builds_leave_the_noise_of_a_timer() -> None:
    (taught,) = learn(builds(2.0, 2.0, 2.0, 2.0))[0].corrections
    assert taught.low < 0.99 * taught.factor < 1.01 * taught.factor < taught.high


def test_too_few_builds_are_said_and_teach_nothing() -> None:
    append(builds(*[1.5] * (LEAST_BUILDS - 1)))
    found, short = learn_from_builds()
    assert found.corrections == ()
    assert short == [f"{STEP} on 'cpu-2core': 3 builds are needed, and 2 stored"]
    assert correction(STEP, "cpu-2core") is None


def test_no_builds_are_an_error() -> None:
    with pytest.raises(UsageError, match="no build has been completed"):
        learn_from_builds()


def test_builds_correct_the_figures_of_their_device_alone() -> None:
    before = {name: recommend(spec(name)).figures for name in ("cpu-2core", "cpu-16core")}
    append(builds(3.0, 3.1, 2.9))
    append(builds(1.0, 1.0, quantity="training.total_seconds"))
    learn_from_builds()
    after = recommend(spec("cpu-2core")).figures
    figure = after[STEP]
    assert figure.evidence == "measured"
    assert figure.source.startswith("3 builds on this machine")
    assert figure.value == pytest.approx(3.0 * (before["cpu-2core"][STEP].value or 0))
    assert figure.low < figure.value < figure.high  # type: ignore[operator]
    assert after["training.uncorrected_step_seconds"] == before["cpu-2core"][STEP]
    total = "training.total_seconds"
    assert after[total] == before["cpu-2core"][total]
    assert recommend(spec("cpu-16core")).figures == before["cpu-16core"]


def test_builds_of_another_processor_teach_this_one_nothing() -> None:
    append([build._replace(processor="abacus") for build in builds(3.0, 3.0, 3.0)])
    learn_from_builds()
    assert correction(STEP, "cpu-2core") is None


def test_a_device_given_in_full_has_a_key_of_its_own() -> None:
    device = Hardware(kind="cpu", memory_gib=4)
    assert hardware_key("a10") == "a10"
    assert hardware_key(None) is None
    assert json.loads(hardware_key(device) or "")["memory_gib"] == 4
    assert hardware_key(device) != hardware_key(device.model_copy(update={"memory_gib": 5}))


def test_the_command_measures_then_learns(home: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(main, ["calibrate", "--quick"])
    assert shown.exit_code == 0, shown.output
    assert "GB/s" in shown.output
    assert str(home / FILE) in shown.output
    document = json.loads(runner.invoke(main, ["calibrate", "--quick", "--json"]).stdout)
    assert document["schema_version"] == 1
    assert document["calibration"]["hardware"]["measured"] is True
    refused = runner.invoke(main, ["calibrate", "--from-builds"])
    assert refused.exit_code == 2
    append(builds(1.5, 1.5, 1.5))
    learned = runner.invoke(main, ["calibrate", "--from-builds"])
    assert "1.50 x predicted (" in learned.output
    document = json.loads(runner.invoke(main, ["calibrate", "--from-builds", "--json"]).stdout)
    assert document["corrections"][0]["builds"] == 3
    assert document["missing"] == []
