"""Builds killed at random moments: a half artifact is never seen, and the result is the same."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import ModuleType

from click.testing import CliRunner

from compiler.artifact import verify
from compiler.cli import main

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


def test_a_killed_build_goes_on_to_the_same_bytes(toy: ModuleType, tmp_path: Path) -> None:
    """Kills fall anywhere between the start of a process and its end, publishing included."""
    toy.write_place(tmp_path, layers=1, max_steps=6)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    result = CliRunner().invoke(main, toy.build_words(tmp_path, undisturbed))
    assert result.exit_code == 0, result.output
    expected = adapters(undisturbed)
    assert expected.keys() == toy.STEPS.keys()

    def attempt(seconds: float | None) -> bool:
        """Whether a run was left to end; what it has published is checked and taken away."""
        ended = run(toy.build_command(tmp_path, out), seconds)
        assert out.exists() or not ended
        assert not ended or not list(tmp_path.glob(".killed.*"))
        if out.exists():
            assert adapters(out) == expected
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
