"""What a build is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from planner.plan import Plan


@dataclass(frozen=True)
class Request:
    """`data` is a JSONL file per tenant; `cache` None is the user's cache folder."""

    plan: Plan
    model: Path
    data: Mapping[str, Path]
    out: Path
    cache: Path | None = None
    replace: bool = False
    restart: bool = False
    quiet: bool = False
