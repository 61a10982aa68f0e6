"""The runner: plans every node of a recipe, then runs each in a process of its own.

A run directory holds everything that a run made:

    RUN/recipe.yaml         the recipe as it was read
    RUN/run.json            nodes, their keys and states; hashes of the start checkpoint
    RUN/ledger.jsonl        measurements, costs, tables; RUN/sequences/*.parquet
    RUN/nodes/<name>/       a finished checkpoint (it appears whole or not at all)
    RUN/work/<name>/        what an unfinished stage may continue from; nothing there is deleted unless a person says so
    RUN/logs/<name>.log     what the stage's process printed when it was not a terminal
    RUN/logs/<name>.*.jsonl what it measured on the way, such as the losses of a training (metrics.jsonl)
    RUN/logs/<name>.tracking/ and .adapter/: files of other programs that a training told, and its adapters alone

A node is skipped when its checkpoint exists and carries the same key (stage, version, settings, content hashes of
everything it reads). Because each stage reads its input from disk in a fresh process, a resumed run equals an
uninterrupted one, and a crash or an exhausted memory in one stage does not take the run down.
"""

from burnish.core.runner.directory import LOCK_FILE, RUN_FILE, RUN_FORMAT
from burnish.core.runner.plan import Decision, Planner, Rooms
from burnish.core.runner.process import NODE_ERROR_STATUS
from burnish.core.runner.run import Run

__all__ = ["LOCK_FILE", "NODE_ERROR_STATUS", "RUN_FILE", "RUN_FORMAT", "Decision", "Planner", "Rooms", "Run"]
