"""This machine timed with torch and the fused op."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from compiler.calibration import RANK, ROWS, measure
from compiler.cli import main
from planner.calibration import SIDE, Calibration
from planner.catalog import hardware


@pytest.fixture(scope="module")
def quick() -> Calibration:
    return measure(quick=True)


def test_rates_are_those_of_the_timings(quick: Calibration) -> None:
    by_name = {timing.name: timing for timing in quick.timings}
    single, half = (
        next(t for name, t in by_name.items() if name.startswith(dtype))
        for dtype in ("float32", "bfloat16")
    )
    device = quick.hardware
    assert device.measured
    assert (device.fp32_tflops or 0) >= single.rate / 1e12
    assert device.bf16_tflops == (half.rate / 1e12 if half.rate > single.rate else None)


def test_the_op_is_timed_with_int8_rows_and_with_a_tenant(quick: Calibration) -> None:
    fast, exact, base, tenant = (t for t in quick.timings if "fused op" in t.name)
    assert fast.amount == exact.amount == 2 * ROWS * SIDE[True] ** 2
    assert base.amount == tenant.amount < 0.6 * SIDE[True] ** 2
    assert f"rank-{RANK} tenant" in tenant.name
    if quick.hardware.kind == "cpu":
        assert quick.hardware.int8_tops == fast.rate / 1e12


def test_the_command_keeps_what_plans_then_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETUNE_HOME", str(tmp_path))
    result = CliRunner().invoke(main, ["calibrate", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    kept = json.loads(result.stdout)["calibration"]["hardware"]
    assert hardware("local").model_dump() == kept
