"""Completed builds: what was predicted of each and what was measured, in one SQLite file.

A row is one quantity of one tenant's training, under the key of the plan's figure. Predictions are
those of the formulas, before any correction that earlier builds have taught.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from planner.errors import ParetuneError
from planner.home import home

FILE = "builds.sqlite3"
VERSION = 1
WAIT_SECONDS = 10.0
"""For another build that writes at the same moment."""
TABLE = """
CREATE TABLE IF NOT EXISTS builds (
    at TEXT NOT NULL,
    processor TEXT NOT NULL,
    hardware TEXT NOT NULL,
    method TEXT NOT NULL,
    quantity TEXT NOT NULL,
    predicted REAL NOT NULL CHECK (predicted > 0),
    measured REAL NOT NULL CHECK (measured > 0)
)
"""


class Build(NamedTuple):
    """One quantity; `hardware` is the plan's, by name or as JSON."""

    processor: str
    hardware: str
    method: str
    quantity: str
    predicted: float
    measured: float


def append(builds: Sequence[Build], path: Path | None = None) -> Path:
    """All of them or none; raises ParetuneError where the file cannot be written or is newer."""
    path = home() / FILE if path is None else path
    at = datetime.now(UTC).isoformat(timespec="seconds")
    with _opened(path) as connection, connection:
        rows = [(at, *build) for build in builds]
        connection.executemany("INSERT INTO builds VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    return path


def read(path: Path | None = None) -> list[Build]:
    """Oldest first; none where nothing was ever built."""
    path = home() / FILE if path is None else path
    if not path.is_file():
        return []
    columns = ", ".join(Build._fields)
    with _opened(path) as connection:
        rows = connection.execute(f"SELECT {columns} FROM builds ORDER BY rowid").fetchall()
    return [Build(*row) for row in rows]


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as connection:
            _prepare(connection, path)
            yield connection
    except (sqlite3.Error, OSError) as error:
        raise ParetuneError(f"the store of builds '{path}' is of no use: {error}") from error


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Makes the table in a new file; a file of another version is refused."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, VERSION):
        raise ParetuneError(
            f"the store of builds '{path}' has version {version}, and this program knows {VERSION}",
            hint="update the program, or move the file away",
        )
    if version == 0:
        with connection:
            connection.execute(TABLE)
            connection.execute(f"PRAGMA user_version = {VERSION}")
