"""Several processes that talk over gloo, forked from the test's own, so that starting them costs next to nothing."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 240


def together(num: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, *arguments)` returned in each of `num` processes of one process group.

    Raises:
        AssertionError: with the traceback of the first process that failed.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as directory:
        pipes, processes = [], []
        for rank in range(num):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_one, args=(rank, num, directory, theirs, work, arguments))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        results: dict[int, Any] = {}
        try:
            deadline = time.monotonic() + TIMEOUT
            while len(results) < num:
                waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
                for pipe in wait(waiting, timeout=max(0.0, deadline - time.monotonic())) or [None]:
                    assert pipe is not None, f"{len(waiting)} of {num} processes did not end within {TIMEOUT} seconds"
                    rank = pipes.index(pipe)
                    try:
                        failed, result = pickle.loads(
                            pipe.recv_bytes()
                        )  # not shared memory, which dies with its process
                    except EOFError:
                        processes[rank].join()
                        failed, result = True, f"process {rank} of {num} ended with {processes[rank].exitcode}"
                    # The first to fail has the cause; the others follow because it is gone.
                    assert not failed, result
                    results[rank] = result
        finally:
            for process in processes:
                process.join(10 if len(results) == num else 0)
                if process.is_alive():
                    process.kill()
    return [results[rank] for rank in range(num)]


def _one(rank: int, num: int, directory: str, pipe: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{Path(directory) / 'rendezvous'}",
            rank=rank,
            world_size=num,
            timeout=timedelta(seconds=TIMEOUT / 2),
        )
        pipe.send_bytes(pickle.dumps((False, work(rank, *arguments))))
        dist.destroy_process_group()
    except BaseException:
        pipe.send_bytes(pickle.dumps((True, f"process {rank} of {num}:\n{traceback.format_exc()}")))
        raise
