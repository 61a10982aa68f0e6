"""A worker that hangs or dies when it is asked to."""

from __future__ import annotations

import os
import time
from typing import Any

from burnish.verify.worker import serve


def answer(question: dict[str, Any]) -> dict[str, Any]:
    if "exit" in question:
        os._exit(question["exit"])
    if "sleep" in question:
        time.sleep(question["sleep"])
    while "spin" in question:
        pass
    print("what a library prints is no answer")
    return question | {"pid": os.getpid()}


if __name__ == "__main__":
    serve(answer)
