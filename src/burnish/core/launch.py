"""torchrun for one node: `python -m burnish.core.launch PROCESSES SPEC.json`, started by the runner.

The processes are started and watched by torch's own launcher. What this adds is the end: when a process dies, the
others are stopped and the runner gets one sentence that says which and how, in place of the launcher's traceback.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

from burnish.core.errors import StageError
from burnish.core.node import die_with, report
from burnish.core.runner.process import NODE_ERROR_STATUS, killed_by


def main(processes: int, spec_file: str) -> int:
    """Runs the node in that many processes; returns the status to exit with."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    die_with(spec["parent"])
    for name in logging.root.manager.loggerDict:  # each has a level of its own; the sentence below says it all
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "burnish.core.node", spec_file)
    except SignalException as error:  # its processes are stopped by now
        return 128 + error.sigval
    except ChildFailedError as error:
        ends = {rank: failure.exitcode for rank, failure in error.failures.items()}
        return _explain(ends, processes, spec)
    return 0


def _explain(ends: dict[int, int], processes: int, spec: dict[str, Any]) -> int:
    """Writes the error file where a process was killed; errors that a process wrote itself stay."""
    killed = {rank: -status for rank, status in ends.items() if status < 0 and -status != signal.SIGTERM}
    if killed:
        rank, number = min(killed.items())
        error = StageError(
            f"process {rank} of {processes} {killed_by(number)}; the others were stopped",
            fix="run the same command again: it continues from the last saved state",
        )
        report(spec, error)
        return NODE_ERROR_STATUS
    return NODE_ERROR_STATUS if Path(spec["error_file"]).is_file() else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
