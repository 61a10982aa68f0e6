"""Ctrl-C and SIGTERM while a library is imported: they end the command when that is done, and not within it.

Compiled libraries run Python while they start, and some have no way out for an exception there: KeyboardInterrupt
aborts the process (`terminate called after throwing an instance of 'pybind11::error_already_set'`), or is lost.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

_IMPORT_SYSTEM = "<frozen importlib._bootstrap"


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler of signals: raises KeyboardInterrupt, and behind an import where one is going on.

    "Behind" is the next line, or the end, of the function that imports.
    """
    importing = _importing(frame)
    if importing is None or sys.gettrace() is not None:
        raise KeyboardInterrupt
    importing.f_trace = _raise
    sys.settrace(lambda *_: None)  # without one, Python does not look at the frame's own


def listen() -> None:
    """Handles Ctrl-C so, unless this process is deaf to it, as what a shell starts in the background is."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


def ignore() -> None:
    """Hears no Ctrl-C from here on: people press it twice, and one sentence is enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_interrupted(what_continues: Callable[[], str] = str) -> NoReturn:
    """Ends the process in one sentence with the status that shells expect."""
    ignore()
    print(f"burnish: interrupted{what_continues()}", file=sys.stderr)
    sys.exit(130)


def _importing(frame: FrameType | None) -> FrameType | None:
    """The outermost function that waits for an import, None where nothing is imported."""
    found = None
    while frame is not None:
        caller = frame.f_back
        if frame.f_code.co_filename.startswith(_IMPORT_SYSTEM):
            found = caller
        frame = caller
    return found


def _raise(frame: FrameType, event: str, argument: Any) -> NoReturn:
    sys.settrace(None)
    frame.f_trace = None
    raise KeyboardInterrupt
