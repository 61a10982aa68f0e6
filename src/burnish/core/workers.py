"""Work on many items in several processes of this machine, with what comes out in the order of the items.

Workers are fresh interpreters, so nothing of this process's threads comes along. They end when it does, whatever ended
it, and leave Ctrl-C to it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from burnish.core.errors import StageError

Item = TypeVar("Item")
Found = TypeVar("Found")

AHEAD = 2
"""Items that wait for a worker, beside one in each: what is read ahead must fit into memory."""


def in_order(function: Callable[[Item], Found], items: Iterable[Item], workers: int) -> Generator[Found, None, None]:
    """`map(function, items)`, by so many processes; one is this process itself.

    Args:
        function: what is done to each; with several processes it, the items and what comes out must be picklable.
        items: taken as workers become free.
        workers: processes.

    Raises:
        StageError: a worker was ended from outside.
        Exception: what the function raises, at its item's turn.
    """
    if workers == 1:
        yield from map(function, items)
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    waiting: deque[Any] = deque()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(function,))
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) >= workers + AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        what = "a worker process ended without a result; it may have run out of memory"
        fix = "use fewer workers; a script that asks for several has to do so below if __name__ == '__main__'"
        raise StageError(what, where="workers", fix=fix) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_function: Callable[[Any], Any] | None = None
"""Of a worker: what it does, sent once."""


def be_a_worker() -> None:
    """Of a process that another one started: leaves Ctrl-C to it, and ends when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    be_a_worker()


def _end_with_parent() -> None:
    """A worker waits for its next item for ever, also where nobody is left to send one."""
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None, "a worker has been started by somebody"
    parent.join()
    os._exit(1)


def _call(item: Any) -> Any:
    assert _function is not None, "a worker has begun before its first item"
    return _function(item)
