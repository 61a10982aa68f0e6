"""The other side of `burnish.verify.workers`: a process that answers one JSON line with another."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

MEMORY = 4 << 30
"""Bytes of address space; an answer such as 9^9^9^9 asks for more."""

SECONDS = 60
"""Of processor time for one question, so that a worker ends even when whoever asked is gone."""


def serve(answer: Callable[[Any], Any]) -> None:
    """Answers questions until there are no more; what the library prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    memory = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    replies.write(b"ready\n")
    for line in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        until = int(used.ru_utime + used.ru_stime) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        replies.write(json.dumps(answer(json.loads(line))).encode() + b"\n")
