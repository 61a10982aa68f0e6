"""`python -m burnish.verify.math_worker`: math-verify in a process of its own (see `burnish.verify.workers`)."""

from __future__ import annotations

import logging

from burnish.verify.worker import serve


def equal(pair: list[str]) -> bool:
    """Whether the second answer says what the first, the gold one, says; an answer that cannot be read says nothing."""
    from math_verify import parse, verify

    # Its own clocks are signals; whoever asks holds the clock here.
    gold, found = (parse(f"${text}$", parsing_timeout=None) for text in pair)  # pyright: ignore[reportArgumentType]
    return bool(gold) and bool(found) and verify(gold, found, timeout_seconds=None)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # a warning a call that the clocks are off
    import math_verify  # noqa: F401 (before "ready", so that no question waits for it)

    serve(equal)
