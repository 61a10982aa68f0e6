"""Fresh problems of reasoning-gym, in rows that its scorers (`burnish.verify`, "reasoning-gym") read.

The library draws row i of a seed from seed + i, so that seeds 0 and 1 share all rows but one. Here the seed of a task's
rows follows from the seed and the task's name by a hash, and problems to be held out are named by a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from burnish.core.errors import MissingExtraError, SettingsError, nearest

TRIES = 20
"""Rows drawn for each that is wanted before a task is said to be exhausted."""


def gym_rows(
    tasks: Sequence[str], number: int, *, seed: int, apart_from: frozenset[str] | set[str] = frozenset()
) -> Iterator[dict[str, Any]]:
    """So many problems, of the tasks in turn, no question twice: `id`, `task`, `question`, `entry`.

    Raises:
        MissingExtraError: without reasoning-gym.
        SettingsError: no such task, or one that has not so many different problems.
    """
    if find_spec("reasoning_gym") is None:
        raise MissingExtraError("reasoning-gym", "verify", "making problems of reasoning-gym")
    if not tasks or len(set(tasks)) < len(tasks):
        raise SettingsError("problems need tasks, each of them once", where="--task", fix="name them")
    seen = set(apart_from)
    streams = [_entries(task, -(-number // len(tasks)), seed) for task in tasks]
    for index in range(number):
        task, entries = tasks[index % len(tasks)], streams[index % len(tasks)]
        entry = next((one for one in entries if one["question"] not in seen), None)
        if entry is None:
            raise SettingsError(
                f"{task!r} has not {-(-number // len(tasks)):,} different problems that are not held out",
                where="--number",
                fix="ask for fewer, or for more tasks",
            )
        seen.add(entry["question"])
        yield {"id": f"{task}-{seed}-{index}", "task": task, "question": entry["question"], "entry": entry}


def check_task(task: str) -> None:
    """Refuses a name that no task has, where the library is there to say so.

    Raises:
        SettingsError: no such task.
    """
    if find_spec("reasoning_gym") is None:
        return
    from reasoning_gym.factory import DATASETS

    known = sorted(set(DATASETS) - {"composite"})
    if task not in known:
        guess = nearest(task, known)
        fix = f"did you mean {guess!r}?" if guess else f"its {len(known)} tasks are such as {', '.join(known[:8])}"
        raise SettingsError(f"reasoning-gym has no task {task!r}", fix=fix)


def _entries(task: str, number: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of one task as a file will keep them."""
    from reasoning_gym import create_dataset

    check_task(task)
    start = int.from_bytes(hashlib.sha256(f"{seed} {task}".encode()).digest()[:4]) >> 1
    made = create_dataset(task, seed=start, size=number * TRIES)
    return (json.loads(json.dumps(made[index], default=str)) for index in range(number * TRIES))
