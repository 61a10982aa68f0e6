"""A process of its own that draws answers while the learner computes an update.

It has a copy of the model. New weights come through shared memory, one place for each version that may still have to
draw: with staleness K the answers of version v have been taken before version v + K + 1 is sent, so K + 1 places are
enough and nobody waits for a place. Every forward pass of the copy is a sign of life.
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.multiprocessing  # tensors go to other processes by shared memory from here on
from torch import Tensor

from burnish.align.drawing import Drawer, DrawnBatch, Orders, drawn_now
from burnish.core.errors import SettingsError, StageError
from burnish.core.runner.process import killed_by
from burnish.core.workers import be_a_worker

PATCHED = ("forward", "_original_forward")
"""What trainers lay over a model's own forward pass, and no other process can be sent."""
SECONDS_TO_END = 5.0
GO_ON = "run the same command again: it continues from the last saved state"


class OwnProcess:
    """A worker and a transfer of weights, as `burnish.align.drawing.InTurn`, in a process of its own.

    Args:
        module: the policy, whose copy draws.
        drawer: how.
        orders: what.
        places: versions whose weights are kept at a time.
    """

    def __init__(self, module: Any, drawer: Drawer, orders: Orders, places: int) -> None:
        self.orders, self.context = orders, multiprocessing.get_context("spawn")
        self.rollout_buffer: Any = self.context.Queue()
        self.metrics_queue: Any = self.context.Queue()
        self._work: Any = self.context.Queue()
        self._beat: Any = self.context.Value("d", time.monotonic())
        own = copy.deepcopy(module)
        for name in PATCHED:
            own.__dict__.pop(name, None)
        own.eval()  # parameters want gradients as the learner's do: torch takes other programs, that round otherwise
        weights = {name: value.detach().cpu() for name, value in own.named_parameters()}
        self.places = [
            {name: torch.empty_like(value).share_memory_() for name, value in weights.items()} for _ in range(places)
        ]
        self._sent = -1
        given = (own, drawer, self.places, self._work, self.rollout_buffer, self._beat, torch.get_num_threads())
        self._process = self.context.Process(target=_draw_until_told, args=given, daemon=True)

    # -- RolloutWorkerProtocol -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the process.

        Raises:
            SettingsError: something of the model or of how it draws cannot be sent there.
        """
        try:
            self._process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:  # which of them, depends on what it is
            what = f"needs a model and tools that can be sent to another process ({error})"
            raise SettingsError(what, where="asynchronous", fix="leave it out, or define tools in a module") from error
        self._live()

    def stop(self) -> None:
        """Asks the process to end, and ends it where it does not."""
        if self._process.is_alive():
            self._work.put(None)
            self._process.join(SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        for one in (self._work, self.rollout_buffer, self.metrics_queue):
            one.cancel_join_thread()
            one.close()

    def update_model_version(self, model_version: int) -> None:
        """Hands on what this version is to draw, with the weights that were sent last."""
        self._live()
        for order in self.orders(model_version):
            self._work.put((self._sent, order))

    def check_health(self, stale_after_s: float) -> None:
        """Raises where the process has ended, or for so many seconds no forward pass has begun.

        Raises:
            StageError: one or the other.
        """
        if not self._process.is_alive():
            status = self._process.exitcode or 0
            how = killed_by(-status) if status < 0 else f"ended with status {status}"
            raise StageError(f"the process that draws answers {how}", where="drawing", fix=GO_ON)
        silent = time.monotonic() - self._beat.value
        if silent > stale_after_s:
            raise StageError(
                f"the process that draws answers has been silent for {silent:.0f} seconds", where="drawing", fix=GO_ON
            )

    def _live(self) -> None:
        """Silence counts from now on: who had nothing to do need not have said anything."""
        self._beat.value = time.monotonic()

    # -- WeightTransferProtocol ----------------------------------------------------------------------------------------

    def init_weight_transfer(self) -> None:
        """Nothing: the places have been made."""

    def pause(self) -> None:
        """Nothing: what is being drawn goes on with the weights that it began with."""

    def send_weights(self, iterator: Iterator[tuple[str, Tensor]]) -> None:
        """Copies the weights to the next place."""
        self._sent = (self._sent + 1) % len(self.places)
        place = self.places[self._sent]
        with torch.no_grad():
            for name, value in iterator:
                place[name].copy_(value)

    def resume(self) -> None:
        """Nothing."""

    def destroy(self) -> None:
        """Lets go of the places."""
        self.places.clear()


def _draw_until_told(
    module: Any,
    drawer: Drawer,
    places: list[dict[str, Tensor]],
    work: Any,
    rollout_buffer: Any,
    beat: Any,
    threads: int,
) -> None:
    be_a_worker()
    torch.set_num_threads(threads)
    own, loaded = dict(module.named_parameters()), None

    def live(*_: object) -> None:
        beat.value = time.monotonic()

    module.register_forward_pre_hook(live)
    while (item := work.get()) is not None:
        place, order = item
        live()
        if loaded != order.version:
            with torch.no_grad():
                for name, value in places[place].items():
                    own[name].copy_(value)
            loaded = order.version
        try:
            answers = drawn_now(drawer, module, order)
        except Exception as error:  # noqa: BLE001 - of whatever kind, it is raised where the answers are waited for
            answers = DrawnBatch(order.update, order.version, [], failed=f"{type(error).__name__}: {error}")
        rollout_buffer.put(answers)
