"""For how long the context of a workflow is kept while its tool runs.

A workflow that pauses for T will want its context of r tokens back. Keeping it for tau saves, where T <= tau, what
computing it again costs and what a returning turn without its context waits:

    tau* = argmax_{tau >= 0} P(T <= tau) B - E[min(T, tau)],     B = eta Q + R(r) (1 + n)

where E[min(T, tau)] is the time for which it is really held, with R the time to compute r tokens, n the requests that
run and are held up by that, Q the mean wait of returning turns whose context was gone, and eta = minus the correlation
between the turns that finished workflows had had and those they still had (1 where that is undefined). Continuum,
2025, arXiv:2511.02230, has n = 0 and pays tau in the place of E[min(T, tau)], as if a context were held to the end of
its time whoever comes back (`charge: longest`); its published program has a fixed two seconds. P is what was seen: the
pauses after the same tool, after any tool where there are not more than `FEW` of those; before that an exponential law
with a mean of a second, for which tau* = max(0, log(lambda B) / lambda) where the longest time is paid. Or it is what a
trained model says of this workflow (`burnish.serve.policies.pauses`).

A hold is a wish, not a lock: where running requests need room, holds are given up in the order of what they are worth,

    P(T <= until | T > elapsed) B / (tokens * E[min(T, until) - elapsed | T > elapsed]),

the least first, tails first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from burnish.serve.policies.laws import KEPT
from burnish.serve.policies.pauses import PauseLaws, SeenPauses
from burnish.serve.policies.protocol import Hold, Job, Room

SECOND = 1_000_000_000
Charge = Literal["expected", "longest"]


class NoRetention:
    """The cache decides: what was used longest ago goes first."""

    def on_finish(self, job: Job, tokens: int, room: Room) -> int:
        return 0

    def on_return(self, job: Job, tool: str, pause: int) -> None:
        pass

    def on_admit(self, job: Job, waited: int) -> None:
        pass

    def on_pressure(self, holds: Iterable[Hold], room: Room) -> Sequence[Hold]:
        return sorted(holds, key=lambda hold: hold.since)


class FixedHold(NoRetention):
    """The same time for all who call a tool."""

    def __init__(self, seconds: float = 2.0) -> None:
        self._time = round(seconds * SECOND)

    def on_finish(self, job: Job, tokens: int, room: Room) -> int:
        return self._time if job.tool else 0


def exponential_hold(worth: float, rate: float = 1.0) -> float:
    """tau* where pauses are exponential and a hold costs its longest time."""
    return max(0.0, math.log(rate * worth) / rate) if worth > 0 else 0.0


class LearnedHold(NoRetention):
    """By the expected cost of waiting.

    Args:
        recompute: seconds that computing so many tokens takes.
        longest: no hold is longer, in seconds.
        pauses: laws of pauses; what was seen where nothing is said.
        charge: what a hold costs: the time that it is expected to last, or its longest.
    """

    def __init__(
        self,
        recompute: Callable[[int], float],
        longest: float = 600.0,
        pauses: PauseLaws | None = None,
        charge: Charge = "expected",
    ) -> None:
        self._recompute, self._longest, self._charge = recompute, longest, charge
        self._pauses = pauses or SeenPauses()
        self._waits: deque[float] = deque(maxlen=KEPT)
        self._turns: deque[int] = deque(maxlen=KEPT)

    def on_finish(self, job: Job, tokens: int, room: Room) -> int:
        if not job.tool:
            self._turns.append(job.turn + 1)
            self._pauses.forget(job.program)
            return 0
        law, worth = self._pauses.find(job.program, job.tool), self.worth(tokens, room.num_running)
        if law is None:
            seconds = exponential_hold(worth)
        else:
            seconds = law.best_hold(worth) if self._charge == "expected" else law.best_longest_hold(worth)
        return round(min(seconds, self._longest) * SECOND)

    def on_return(self, job: Job, tool: str, pause: int) -> None:
        self._pauses.add(job.program, tool, pause / SECOND)

    def on_admit(self, job: Job, waited: int) -> None:
        if not job.kept:
            self._waits.append(waited / SECOND)

    def worth(self, tokens: int, others: int) -> float:
        """B, in seconds, where `others` run."""
        wait = sum(self._waits) / len(self._waits) if self._waits else 0.0
        return self._memory() * wait + self._recompute(tokens) * (1 + others)

    def on_pressure(self, holds: Iterable[Hold], room: Room) -> Sequence[Hold]:
        return sorted(holds, key=lambda hold: (self._density(hold, room), hold.since))

    def _density(self, hold: Hold, room: Room) -> float:
        if hold.returned:
            return math.inf
        elapsed, until = (room.now - hold.since) / SECOND, (hold.until - hold.since) / SECOND
        law = self._pauses.find(hold.job.program, hold.job.tool)
        if law is None:
            chance, rest = 1 - math.exp(elapsed - until), 1 - math.exp(elapsed - until)
        else:
            chance, rest = law.chance(elapsed, until), law.mean_rest(elapsed, until)
        return chance * self.worth(hold.tokens, room.num_running) / max(hold.tokens * rest, 1e-9)

    def _memory(self) -> float:
        """eta over finished workflows: the pairs (turns had, turns to come) of each of their turns."""
        pairs = num = sum_k = sum_l = sum_kk = sum_ll = 0.0
        for turns in self._turns:
            n = float(turns)
            num += n
            sum_k += n * (n + 1) / 2  # k = 1..n turns had, n - k to come
            sum_l += n * (n - 1) / 2
            sum_kk += n * (n + 1) * (2 * n + 1) / 6
            sum_ll += (n - 1) * n * (2 * n - 1) / 6
            pairs += n * n * (n + 1) / 2 - n * (n + 1) * (2 * n + 1) / 6
        if num < 2:
            return 1.0
        spread = (sum_kk / num - (sum_k / num) ** 2) * (sum_ll / num - (sum_l / num) ** 2)
        if spread <= 1e-12:
            return 1.0
        return -(pairs / num - sum_k * sum_l / num**2) / math.sqrt(spread)
