"""An interrupt ends the process, whatever the library that is loading makes of it."""

import os
import subprocess
import sys
from pathlib import Path

SWALLOWING = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**6): pass
except BaseException:
    print("swallowed")
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    started = f"from planner.interrupts import heed_interrupts; heed_interrupts()\n{code}"
    path = os.pathsep.join([str(folder), *sys.path])
    command = [sys.executable, "-c", started]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )


def test_an_import_that_swallows_an_interrupt_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(SWALLOWING)
    found = run("import library; print('went on')", tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "interrupted\n")


def test_elsewhere_an_interrupt_can_be_handled(tmp_path: Path) -> None:
    found = run(f"{SWALLOWING}\nprint('went on')", tmp_path)
    assert (found.returncode, found.stdout) == (0, "swallowed\nwent on\n")
