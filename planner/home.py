"""The folder of what this program learns of the machine it runs on."""

import os
from pathlib import Path

CORRECTIONS = "corrections.json"
"""What builds have taught; most machines have none, and then nothing more is loaded for it."""


def home() -> Path:
    """PARETUNE_HOME, or a folder of the user's data; not made here."""
    named = os.environ.get("PARETUNE_HOME")
    if named:
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "paretune"
