"""Ctrl-C and SIGTERM where an exception at once would do harm: in an import, and in the loop of a coroutine.

Compiled libraries run Python while they start, and some have no way out for an exception there: KeyboardInterrupt
aborts the process (`terminate called after throwing an instance of 'pybind11::error_already_set'`), or is lost. A loop
that is left in the middle has calls and files open, each of which complains at the end.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

_IMPORT_SYSTEM = "<frozen importlib._bootstrap"
_before = 0
"""Imports that went on when the handler was set: a script that is imported itself runs within those to its end."""


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler of signals: raises KeyboardInterrupt, and behind an import where one is going on.

    "Behind" is the next line, or the end, of the function that imports.
    """
    waiting = _waiting(frame)
    if len(waiting) <= _before or sys.gettrace() is not None:
        raise KeyboardInterrupt
    waiting[-1 - _before].f_trace = _raise
    sys.settrace(lambda *_: None)  # without one, Python does not look at the frame's own


def handle(number: int) -> Any:
    """Sets the handler of a signal, and returns the one before."""
    global _before
    handler = signal.signal(number, interrupt)
    _before = len(_waiting(sys._getframe()))
    return handler


def listen() -> None:
    """Handles Ctrl-C so, unless this process is deaf to it, as what a shell starts in the background is."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        handle(signal.SIGINT)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, where Ctrl-C cancels the coroutine, which closes what it has open.

    Pressed a second time it is not heard, as people press it twice; a third time does not wait for the closing.
    """
    import asyncio

    if signal.getsignal(signal.SIGINT) is not interrupt:  # deaf to it, a thread, or Python's own, which asyncio handles
        return asyncio.run(coroutine)
    presses = 0

    async def cancelled_by_a_press() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "coroutines run in tasks"

        def press(number: int, frame: FrameType | None) -> None:
            nonlocal presses
            presses += 1
            if presses == 1:
                loop.call_soon_threadsafe(task.cancel)
            elif presses > 2:
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, press)
        return await coroutine

    try:
        result = asyncio.run(cancelled_by_a_press())
    except asyncio.CancelledError:
        if presses:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, interrupt)
    if presses:
        raise KeyboardInterrupt
    return result


def ignore() -> None:
    """Hears no Ctrl-C from here on: people press it twice, and one sentence is enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_interrupted(what_continues: Callable[[], str] = str) -> NoReturn:
    """Ends the process in one sentence with the status that shells expect."""
    ignore()
    print(f"burnish: interrupted{what_continues()}", file=sys.stderr)
    sys.exit(130)


def _waiting(frame: FrameType | None) -> list[FrameType]:
    """The functions that wait for an import, the outermost last."""
    found = list[FrameType]()
    while frame is not None:
        caller = frame.f_back
        is_import = frame.f_code.co_filename.startswith(_IMPORT_SYSTEM)
        if is_import and caller is not None and not caller.f_code.co_filename.startswith(_IMPORT_SYSTEM):
            found.append(caller)
        frame = caller
    return found


def _raise(frame: FrameType, event: str, argument: Any) -> NoReturn:
    sys.settrace(None)
    frame.f_trace = None
    raise KeyboardInterrupt
