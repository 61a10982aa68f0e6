"""What a step with views or weights of tokens costs, measured beside what is expected of its operations.

Before the first step of a training, gradients of some rows are computed by the plain loss and by the objective's in
turn; nothing is updated. A step that has both, the second view and weights computed anew, is what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from burnish.core.stage import Context
from burnish.core.statistics import Interval, interval
from burnish.core.store import Store
from burnish.data.packing import PackedRows
from burnish.train.long_context import LongContext
from burnish.train.losses import ROWS, STEP, Batch, LossFn
from burnish.train.saved import STATES_DIRECTORY
from burnish.train.views import has_view
from burnish.train.world import World

if TYPE_CHECKING:
    from burnish.core.kinds import Plan
    from burnish.train.stage import Train

TABLE = "objective_cost"
"""Name in the ledger."""
ROUNDS = 5
FEWEST_STEPS = 200
"""Below, measuring would be a twentieth of the training or more."""


def tell_cost(
    settings: Train,
    module: Any,
    loss_fn: LossFn,
    rows: PackedRows,
    plan: Plan,
    ctx: Context,
    world: World,
    *,
    steps: int,
) -> None:
    """Logs expected and measured cost, and puts both into the ledger.

    Nothing is measured of short trainings, of resumed ones, and where several processes share the work.

    Args:
        settings: of the training.
        module: the model as it is trained, on its device; its gradients are empty before and after.
        loss_fn: what is minimised.
        rows: to train on.
        plan: of the model.
        ctx: of the stage.
        world: of processes.
        steps: of the training.
    """
    resumed = bool(Store(ctx.work_dir / STATES_DIRECTORY).names())
    if not isinstance(loss_fn, LongContext) or steps < FEWEST_STEPS or resumed or world.size > 1:
        return
    objective = loss_fn.objective
    num = min(settings.micro_batch or settings.batch, len(rows))
    batch = {name: part.to(module.device) for name, part in rows.take(list(range(num))).items()}
    has_all = (step for step in count() if has_view(objective, loss_fn.seed, step) or objective.view == "none")
    batch |= {STEP: torch.tensor(next(has_all)), ROWS: torch.arange(num)}
    anew = replace(loss_fn, kept=None)  # what is kept stays as it is
    expected = settings.added(plan, of_whole_step=True) or 0.0
    found = overhead_of(module, batch, loss_fn.plain, anew, settings.precision)
    ctx.progress.log(
        f"a step of the objective took {found.value:.0%} ({found.low:.0%} to {found.high:.0%}) more time than a plain "
        f"one, where its operations are {expected:.0%} more"
    )
    row = {"objective": settings.objective, "expected": expected, "measured": found.value}
    row |= {"low": found.low, "high": found.high, "rows": num, "context": settings.context, "rounds": ROUNDS}
    ctx.ledger.table(TABLE, [row])


def overhead_of(
    module: Any, batch: Batch, plain: LossFn, ours: LossFn, precision: str, rounds: int = ROUNDS
) -> Interval:
    """Time of a gradient by `ours` over that by `plain`, less one; the two take turns, and a first round warms up."""
    seconds: list[list[float]] = []
    was_training = module.training
    module.train()
    with torch.random.fork_rng(devices=[module.device] if module.device.type == "cuda" else []):
        for turn in range(rounds + 1):
            order: list[LossFn] = [plain, ours] if turn % 2 else [ours, plain]
            each = {id(loss): _seconds(module, batch, loss, precision) for loss in order}
            seconds += [[each[id(plain)], each[id(ours)]]] if turn else []
    module.train(was_training)
    theirs, own = np.array(seconds).T
    return interval(own, theirs, scale="log").map(lambda ratio: ratio - 1)


def _seconds(module: Any, batch: Batch, loss: LossFn, precision: str) -> float:
    """Of one gradient; of the processor on a CPU, where other work may run beside."""
    device = module.device.type
    lower = precision == "bfloat16" or (precision == "auto" and device == "cuda")
    with _timed(device) as passed:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=lower):
            total = loss(module, batch).total
        total.backward()
    module.zero_grad(set_to_none=True)
    return passed()


@contextmanager
def _timed(device: str) -> Iterator[Callable[[], float]]:
    def now() -> float:
        if device != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    began, ended = now(), [0.0]
    yield lambda: ended[0] - began
    ended[0] = now()
