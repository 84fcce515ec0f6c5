"""Reading specs and plans, writing plans: one sentence and a hint for whatever is wrong."""

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from pydantic_core import ErrorDetails, ValidationError

from planner.catalog import Json, read_object
from planner.errors import ParetuneError, UsageError, did_you_mean
from planner.plan import Plan
from planner.section import Section, inner_section
from planner.section_schema import TAGS
from planner.spec import Spec

SHOWN = 5
UNKNOWN_KEY = "unexpected_keyword_argument"
"""pydantic-core's name of that error."""

Document = TypeVar("Document", bound=Section)


def load_spec(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """A spec with `path.to.key=value` overrides applied; raises UsageError."""
    document = read_object(path)
    for override in overrides:
        _apply(document, override)
    return validated(Spec, document, path.name)


def load_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """A plan with `path.to.key=value` overrides applied; raises UsageError."""
    document = read_object(path)
    for override in overrides:
        _apply(document, override)
    return validated(Plan, document, path.name)


def validated(kind: type[Document], document: Json, origin: str) -> Document:
    """The document as that type, or a UsageError that names every wrong key."""
    try:
        return kind.model_validate_json(json.dumps(document))
    except ValidationError as error:
        # Last what is missing: a key that is unknown may be meant for it.
        found = error.errors(include_url=False)
        problems = sorted(found, key=lambda problem: problem["type"] == "missing")
        sentences = [_sentence(kind, problem) for problem in problems[:SHOWN]]
        if len(problems) > SHOWN:
            sentences.append(f"and {len(problems) - SHOWN} more")
        hints = [hint for hint in (_hint(kind, problem) for problem in problems) if hint]
        message = f"{origin}: {'; '.join(sentences)}"
        raise UsageError(message, hint=hints[0] if hints else None) from None


def _apply(document: Json, override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UsageError(f"--set takes path.to.key=value, not '{override}'")
    *parents, last = path.split(".")
    section = document
    for parent in parents:
        inner = section.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {path}: '{parent}' is {json.dumps(inner)}, not a section")
        section = inner
    try:
        section[last] = json.loads(text)
    except json.JSONDecodeError:
        section[last] = text


def _location(problem: ErrorDetails) -> list[str]:
    """The way to it, without the tags of unions; an unknown key may have the name of one."""
    way = problem["loc"]
    key = len(way) - 1 if problem["type"] == UNKNOWN_KEY else None
    return [str(part) for place, part in enumerate(way) if place == key or part not in TAGS]


def _sentence(kind: type[Section], problem: ErrorDetails) -> str:
    location = _location(problem)
    where = ".".join(location)
    if problem["type"] == UNKNOWN_KEY:
        known = ", ".join(_keys(kind, location[:-1]))
        return f"unknown key '{where}'; keys are {known}"
    if problem["type"] == "missing":
        return f"missing key '{where}'"
    text = problem["msg"][0].lower() + problem["msg"][1:]
    value = json.dumps(problem["input"], default=str)
    place = f"{where}: " if where else ""
    return f"{place}{text}, not {value if len(value) <= 60 else value[:57] + '...'}"


def _hint(kind: type[Section], problem: ErrorDetails) -> str | None:
    location = _location(problem)
    if problem["type"] == UNKNOWN_KEY:
        return did_you_mean(location[-1], _keys(kind, location[:-1]))
    if problem["type"] == "literal_error":
        expected = str(problem.get("ctx", {}).get("expected", ""))
        options = [part for part in expected.split("'") if part.strip() not in ("", ",", "or")]
        return did_you_mean(str(problem["input"]), options)
    if problem["type"] == "missing" and kind is Spec and len(location) == 1:
        return "a spec needs model, task and vram_gib; the rest has defaults"
    if problem["type"] == "missing" and kind is Plan and location == ["candidate"]:
        return "planner recommend writes a plan of a spec"
    return None


def _keys(kind: type[Section], location: Sequence[str]) -> list[str]:
    """The keys of the section at that place; an index or a dictionary's key is none of them."""
    for part in location:
        annotations = {each.name: each.type for each in fields(kind)}
        kind = inner_section(annotations.get(part)) or kind
    return [each.name for each in fields(kind)]


def dump(document: Section) -> str:
    """The JSON of a spec or plan, as it is written to a file and to stdout."""
    return document.model_dump_json(indent=2) + "\n"


def write(path: Path, content: str | bytes) -> None:
    """Written aside and renamed, so that a reader never sees half a file."""
    if path.is_dir():
        raise ParetuneError(f"cannot write {path}: is a directory")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        reason = (error.strerror or "failed").lower()
        raise ParetuneError(f"cannot write {path}: {reason}") from None
