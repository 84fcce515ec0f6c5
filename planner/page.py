"""A frontier as one self-contained interactive HTML file: no request leaves it."""

import html
import json
import re
from pathlib import Path

from planner.marks import marks
from planner.quality import TIE_POINTS
from planner.tradeoffs import Frontier

TEMPLATE = Path(__file__).with_name("page.html")
SLOT = re.compile("<!--(title|data)-->")
UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
"""Characters that could end the script element or its lines; JSON reads the escapes as the same."""


def page(frontier: Frontier) -> str:
    """The page; equal frontiers give equal text."""
    found = {
        "frontier": frontier.model_dump(),
        "marks": [mark._asdict() for mark in marks(frontier)],
        "tie_points": TIE_POINTS,
    }
    data = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    slots = {
        "title": html.escape(f"{frontier.model}: {frontier.task}"),
        "data": data.translate(UNSAFE),
    }
    # In one go, so that no value is searched for slots.
    return SLOT.sub(lambda slot: slots[slot[1]], TEMPLATE.read_text(encoding="utf-8"))
