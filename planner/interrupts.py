"""An interrupt while a module loads ends the process there and then.

Libraries take it for a failing import: they go on without, or fail later and differently. What a
command had begun is left as it is by any sudden end, which the next one clears.
"""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
"""The exit code of a command that is interrupted."""

IMPORTING = "<frozen importlib._bootstrap>"


def heed_interrupts() -> None:
    """To be called by a process of our own, before it imports what is large."""
    signal.signal(signal.SIGINT, _interrupted)


def _interrupted(number: int, frame: FrameType | None) -> None:
    outer = frame
    while outer is not None:
        if outer.f_code.co_filename == IMPORTING:
            sys.stderr.write("interrupted\n")
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        outer = outer.f_back
    signal.default_int_handler(number, frame)
