"""A JSONL file → records; every bad line is reported with file, line number and reason."""

import json
from collections.abc import Iterator
from pathlib import Path

from compiler.data.formats import FORMATS, Format, Line, format_of, kind
from compiler.data.problems import BadLine, Problem, refuse
from compiler.data.record import Labelled, Record
from planner.errors import UsageError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read(path: Path, task: str) -> list[Record]:
    """The records of a file of one format, for a plan's task. Blank lines are skipped."""
    records: list[Record] = []
    problems: list[Problem] = []
    first: tuple[int, Format] | None = None
    lines = 0
    for number, raw in _lines(path):
        lines += 1
        try:
            line = _parse(raw)
            found = format_of(line)
            first = first or (number, found)
            _check_format(found, *first, task)
            record = Record(path, number, found.parse(line))
            _check_label(record, records)
            records.append(record)
        except BadLine as error:
            problems.append(Problem(path, number, str(error)))
    if problems:
        refuse(problems, lines)
    if not records:
        raise UsageError(f"data file is empty: {path}")
    return records


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
                line = line.rstrip(b"\r\n")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise UsageError(f"cannot read the data file {path}: {error.strerror}") from error


def _parse(raw: bytes) -> Line:
    try:
        decoded = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise BadLine(f"not UTF-8: byte 0x{byte:02x} at position {error.start + 1}") from error
    try:
        line = json.loads(decoded, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise BadLine(f"not JSON: {error.msg} at position {error.pos + 1}") from error
    except RecursionError as error:
        raise BadLine("not usable JSON: nested too deeply") from error
    except BadLine:
        raise
    except ValueError as error:  # a number of more digits than Python converts
        raise BadLine(f"not usable JSON: {error}") from error
    if not isinstance(line, dict):
        raise BadLine(f"{kind(line)}, not an object")
    return line


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    line = dict(pairs)
    if len(line) < len(pairs):
        keys = [key for key, _ in pairs]
        raise BadLine(f"key '{next(k for k in keys if keys.count(k) > 1)}' is given twice")
    return line


def _check_format(found: Format, first_line: int, first: Format, task: str) -> None:
    if found != first:
        raise BadLine(f"{found.name} line in a file of {first.name} (line {first_line})")
    if found.task != task:
        takes = ", ".join(f.name for f in FORMATS if f.task == task)
        raise BadLine(f"{found.name} line, but task {task} takes {takes}")


def _check_label(record: Record, before: list[Record]) -> None:
    """Labels are all names or all numbers: a mix is most often a quoting mistake."""
    if not before or not isinstance(record.content, Labelled):
        return
    first = before[0].content
    if isinstance(first, Labelled) and type(first.label) is not type(record.content.label):
        raise BadLine(
            f"label {record.content.label!r} is {kind(record.content.label)},"
            f" but line {before[0].line} has {first.label!r}"
        )
