"""The store of completed builds."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from planner.errors import ParetuneError
from planner.store import FILE, Build, append, read

BUILD = Build("a processor", "cpu-2core", "lora", "training.step_seconds", 2.0, 3.0)


def test_what_is_appended_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "made" / FILE
    assert read(path) == []
    assert not path.exists()
    second = BUILD._replace(method="dora", measured=4.5)
    assert append([BUILD], path) == path
    append([second, BUILD], path)
    assert read(path) == [BUILD, second, BUILD]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_build_that_cannot_be_is_refused_with_its_fellows(tmp_path: Path, value: float) -> None:
    path = tmp_path / FILE
    append([BUILD], path)
    with pytest.raises(ParetuneError, match="the store of builds"):
        append([BUILD, BUILD._replace(measured=value)], path)
    assert read(path) == [BUILD]


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text("a diary" * 1000)
    with pytest.raises(ParetuneError, match=FILE):
        read(path)


def test_a_store_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / FILE
    append([BUILD], path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ParetuneError, match="has version 99"):
        append([BUILD], path)


def test_builds_that_end_together_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / FILE
    code = f"""
from pathlib import Path
from planner.store import Build, append
for _ in range(5):
    append([Build{tuple(BUILD)!r}], Path({str(path)!r}))
"""
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert read(path) == [BUILD] * 20
