"""Data files of a few lines."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Sequence[object]], Path]:
    """Writes one line per item: bytes as they are, anything else as JSON."""

    def write_lines(lines: Sequence[object]) -> Path:
        path = tmp_path / "data.jsonl"
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(raw) + b"\n")
        return path

    return write_lines
