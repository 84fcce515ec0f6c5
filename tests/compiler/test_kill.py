"""Builds killed at random moments: a half artifact is never seen, and the result is the same."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from compiler.artifact import verify
from compiler.cli import main
from compiler.workspace import Workspace
from planner.verbs import INTERRUPTED

KILLS = int(os.environ.get("PARETUNE_KILLS", "3"))
"""Every kill costs the start of a process; acceptance is shown with 20."""


def run(command: list[str], seconds: float | None = None) -> bool:
    """Whether the process ended by itself, and then well; after `seconds` it is killed."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
    if process.returncode == -signal.SIGKILL:
        return False
    assert process.returncode == 0, errors
    return True


def adapters(artifact: Path) -> dict[str, bytes]:
    """Every tenant's adapter, of an artifact that is whole."""
    tenants = verify(artifact).tenants
    return {t: (artifact / "tenants" / t / "adapter.safetensors").read_bytes() for t in tenants}


@pytest.fixture(scope="module")
def place(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    toy.write_place(folder, layers=1, max_steps=6)
    return folder


@pytest.fixture(scope="module")
def undisturbed(toy: ModuleType, place: Path) -> dict[str, bytes]:
    out = place / "undisturbed"
    result = CliRunner().invoke(main, toy.build_words(place, out))
    assert result.exit_code == 0, result.output
    return adapters(out)


def test_a_killed_build_goes_on_to_the_same_bytes(
    toy: ModuleType, place: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Kills fall anywhere between the start of a process and its end, publishing included."""
    assert undisturbed.keys() == toy.STEPS.keys()
    out = tmp_path / "killed"

    def attempt(seconds: float | None) -> bool:
        """Whether a run was left to end; what it has published is checked and taken away."""
        ended = run(toy.build_command(place, out), seconds)
        assert out.exists() or not ended
        assert not ended or not list(tmp_path.glob(".killed.*"))
        if out.exists():
            assert adapters(out) == undisturbed
            shutil.rmtree(out)
        return ended

    started = time.monotonic()
    assert attempt(None)
    longest = time.monotonic() - started
    moments = random.Random(0)
    kills = 0
    while kills < KILLS:
        kills += not attempt(moments.uniform(0, longest))
    assert attempt(None)


def test_a_build_stopped_after_publishing_only_tidies_up(
    toy: ModuleType,
    place: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(workspace: Workspace) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    words = toy.build_words(place, out)
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "remove", interrupted)
        assert CliRunner().invoke(main, words).exit_code == INTERRUPTED
    published = out.stat().st_mtime_ns
    assert list(tmp_path.glob(".out.*"))
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert adapters(out) == undisturbed
    assert out.stat().st_mtime_ns == published
    assert not list(tmp_path.glob(".out.*"))
