"""Answers that are drawn ahead of the update that learns from them, with weights of a known age.

The answers of update t are drawn with the weights that max(0, t - K) updates have made, their *version*. K, the
staleness, is not what a race between two processes happens to leave but what is asked for, always: the worst case of a
queue that is bounded by K. So a run that draws in turn, one that draws beside its updates, and one that was killed and
went on are the same run.

    version 0 draws for the updates 0 ... K       update 0 learns   ->  version 1
    version 1 draws for update K + 1              update 1 learns   ->  version 2 ...

Who draws is a worker in the sense of TRL's `RolloutWorkerProtocol`, told by `update_model_version` that weights have
come, by a `WeightTransferProtocol`. What it lays into `rollout_buffer` are answers that nobody has judged, since rules
of length and controllers want whole groups of all processes, which the learner has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from burnish.align.episodes import DrawnEpisode
from burnish.core.errors import StageError
from burnish.generate import Sample, generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POLL = 0.5
"""Seconds between looks at whether the worker lives."""

Drawn = Sample | DrawnEpisode
Inferring = Callable[[], contextlib.AbstractContextManager[Any]]
"""Gives the policy as it draws: without dropout."""


class Drawer(Protocol):
    """How answers are drawn; `burnish.align.episodes.Rollouts` is another one."""

    def draw(self, module: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int], n: int) -> Sequence[Drawn]:
        """`n` answers to the first prompt, then to the second, and so on."""
        ...


@dataclass(frozen=True)
class SingleTurn:
    """Answers of one turn.

    Attributes:
        tokenizer: of the policy.
        max_new_tokens: of an answer.
        sampling: temperature, top_k and so on, as `burnish.generate.generate` takes them.
    """

    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    sampling: dict[str, Any] = field(default_factory=dict)

    def draw(self, module: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int], n: int) -> list[Sample]:
        given, limit = [list(one) for one in prompts], self.max_new_tokens
        return generate(module, self.tokenizer, given, n=n, max_new_tokens=limit, seed=list(seeds), **self.sampling)


@dataclass(frozen=True)
class DrawOrder:
    """What is to be drawn.

    Attributes:
        update: that learns from it first, as many updates before it.
        version: of the weights that are to draw.
        prompts: token ids, of this process.
        seeds: one of each prompt.
        several: answers to each.
    """

    update: int
    version: int
    prompts: list[list[int]]
    seeds: list[int]
    several: int


@dataclass(frozen=True)
class DrawnBatch:
    """What was drawn for an order.

    Attributes:
        update: of the order.
        version: of the weights that drew.
        drawn: prompt-major.
        seconds: that it took.
        failed: what went wrong, where there are none.
    """

    update: int
    version: int
    drawn: list[Any]
    seconds: float = 0.0
    failed: str = ""


Orders = Callable[[int], list[DrawOrder]]
"""What a version of the weights is to draw."""


def updates_of(version: int, staleness: int, every: int, last: int) -> list[int]:
    """The updates whose answers a version draws, which is max(0, update - staleness) for each of them.

    Args:
        version: of the weights.
        staleness: K; a multiple of `every`.
        every: updates that learn from one draw.
        last: updates of the run.
    """
    first = version + staleness if version else 0
    return [update for update in range(first, version + staleness + 1) if update % every == 0 and update < last]


def drawn_now(drawer: Drawer, module: Any, order: DrawOrder) -> DrawnBatch:
    """The answers, by this process."""
    began = time.perf_counter()
    drawn = drawer.draw(module, order.prompts, order.seeds, order.several)
    return DrawnBatch(order.update, order.version, list(drawn), time.perf_counter() - began)


class InTurn:
    """A worker that is no other process: it draws when it is told of a version, while the learner waits.

    It draws with the learner's own weights, so none are sent.

    Args:
        drawer: how.
        orders: what.
        inferring: gives the policy.
    """

    def __init__(self, drawer: Drawer, orders: Orders, inferring: Inferring) -> None:
        self.drawer, self.orders, self.inferring = drawer, orders, inferring
        self.rollout_buffer: queue.Queue[DrawnBatch] = queue.Queue()
        self.metrics_queue: queue.Queue[dict[str, float]] = queue.Queue()

    def start(self) -> None:
        """Nothing: there is no other process."""

    def stop(self) -> None:
        """Nothing."""

    def update_model_version(self, model_version: int) -> None:
        """Draws what this version is to draw."""
        for order in self.orders(model_version):
            with self.inferring() as module:
                self.rollout_buffer.put(drawn_now(self.drawer, module, order))

    def check_health(self, stale_after_s: float) -> None:
        """Nothing: who asks is who draws."""
        del stale_after_s

    def init_weight_transfer(self) -> None:
        """Nothing."""

    def pause(self) -> None:
        """Nothing."""

    def send_weights(self, iterator: Iterator[tuple[str, Tensor]]) -> None:
        """Nothing: they are here."""
        del iterator

    def resume(self) -> None:
        """Nothing."""

    def destroy(self) -> None:
        """Nothing."""


class AnswersAhead:
    """The learner's side: tells versions, waits for answers, and keeps those that came before their update.

    Args:
        make: makes the worker, of what says which orders a version has; it takes the weights too.
        heartbeat: seconds without a sign of life after which it is given up.
    """

    def __init__(self, make: Callable[[Orders], Any], heartbeat: float) -> None:
        self.worker, self.heartbeat = make(self._of_version), heartbeat
        self.waiting: dict[int, DrawOrder] = {}
        self.here: dict[int, DrawnBatch] = {}
        self.started = False

    def _of_version(self, version: int) -> list[DrawOrder]:
        return [order for order in self.waiting.values() if order.version == version]

    def tell(self, version: int, orders: list[DrawOrder], weights: Iterator[tuple[str, Tensor]]) -> None:
        """Weights are there: the worker draws what they are to draw.

        Args:
            version: of the weights.
            orders: what they are to draw.
            weights: by name.
        """
        if not self.started:
            self.worker.init_weight_transfer()
            self.worker.start()
            self.started = True
        if not orders:
            return
        self.waiting |= {order.update: order for order in orders}
        self.worker.pause()
        self.worker.send_weights(weights)
        self.worker.resume()
        self.worker.update_model_version(version)

    def take(self, update: int, prompts: list[list[int]]) -> DrawnBatch:
        """The answers of an update; waits for them.

        Args:
            update: as many updates before it.
            prompts: that it has.

        Raises:
            StageError: the worker has failed, has ended, is silent, or drew with other weights or for other prompts.
        """
        if update not in self.waiting or self.waiting[update].prompts != prompts:
            raise StageError(
                f"the problems of update {update + 1} are not those that answers were drawn to", where="drawing"
            )
        while update not in self.here:
            self._receive()
        order, answers = self.waiting.pop(update), self.here.pop(update)
        if answers.version != order.version:
            raise StageError(
                f"the answers of update {update + 1} were drawn with the weights after {answers.version} updates, "
                f"where those after {order.version} were asked for",
                where="drawing",
            )
        return answers

    def _receive(self) -> None:
        try:
            answers: DrawnBatch = self.worker.rollout_buffer.get(timeout=POLL)
        except queue.Empty:
            self.worker.check_health(self.heartbeat)
            return
        if answers.failed:
            raise StageError(f"the process that draws answers has failed: {answers.failed}", where="drawing")
        self.here[answers.update] = answers

    def stop(self) -> None:
        """Ends the worker."""
        if self.started:
            self.worker.stop()
            self.worker.destroy()
            self.started = False

    # -- a state to go on from -----------------------------------------------------------------------------------------

    def state(self) -> list[dict[str, Any]]:
        """What was drawn and not yet learned from, as JSON can hold it; waits for what is being drawn.

        No weights are in it: what older ones were to draw has been drawn.
        """
        while self.waiting.keys() - self.here.keys():
            self._receive()
        return [
            {"order": dataclasses.asdict(self.waiting[update]), "version": answers.version}
            | {"seconds": answers.seconds, "drawn": [dataclasses.asdict(one) for one in answers.drawn]}
            for update, answers in sorted(self.here.items())
        ]

    def go_on(self, state: list[dict[str, Any]], kind: type[Drawn]) -> None:
        """Takes what a state has.

        Args:
            state: of `state`.
            kind: of an answer.
        """
        for one in state:
            order = DrawOrder(**one["order"])
            drawn = [kind(**answer) for answer in one["drawn"]]
            self.waiting[order.update] = order
            self.here[order.update] = DrawnBatch(order.update, one["version"], drawn, one["seconds"])
