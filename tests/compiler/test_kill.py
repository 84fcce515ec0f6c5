"""Builds killed at random moments: a half artifact is never seen, and the result is the same."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import ModuleType

from compiler.artifact import verify

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
    toy.write_place(tmp_path, max_steps=6)
    started = time.monotonic()
    assert run(toy.build_command(tmp_path, tmp_path / "undisturbed"))
    longest = time.monotonic() - started
    expected = adapters(tmp_path / "undisturbed")
    assert expected.keys() == toy.STEPS.keys()

    moments = random.Random(0)
    out, cache = tmp_path / "killed", tmp_path / "cache"
    command = toy.build_command(tmp_path, out)
    kills = completed = 0
    while kills < KILLS or not completed:
        shutil.rmtree(cache, ignore_errors=True)  # so that capturing is interrupted too
        ended = run(command, moments.uniform(0, longest) if kills < KILLS else None)
        kills += not ended
        if ended:
            completed += 1
            assert not list(tmp_path.glob(".killed.*"))
        if ended or out.exists():
            assert adapters(out) == expected
            shutil.rmtree(out)
