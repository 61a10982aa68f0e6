"""Memory: what this process has held at most, as the kernel counts it, and what a network would fill."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
SHARE_OF_FREE_MEMORY = 0.5
"""A model that would fill more than this is taken from disk layer by layer unless the settings say otherwise."""


def too_large(num_parameters: int) -> bool:
    """Whether the float32 network would fill more than half of the free memory."""
    import psutil

    return 4 * num_parameters > SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available


def for_statistics() -> int:
    """Bytes that sums over a text may fill where the settings name no bound: a quarter of the free memory."""
    import psutil

    return int(SHARE_OF_FREE_MEMORY / 2 * psutil.virtual_memory().available)


def peak_resident_bytes() -> int:
    """Largest resident size so far, interpreter and libraries included.

    On Linux the value belongs to the program that runs: getrusage would also count what the process that started this
    one held at that moment.
    """
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
