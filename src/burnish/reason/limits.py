"""How many calls at a time, and how many at all.

A limiter starts at 16 places, or fewer where the endpoint allows fewer, grows by 1.3 after 20 seconds without trouble
and is halved by a 429, a 5xx or a time-out, once for all calls that were under way when it was: a storm of 256 refusals
is one piece of news.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from burnish.core.errors import SettingsError
from burnish.reason.calls import BudgetSpent, Price, Usage

START, GROWTH, QUIET = 16, 1.3, 20.0


class Limiter:
    """Places for calls to one endpoint.

    Args:
        most: it never has more places.
        start: places at first.
        clock: seconds; for tests.
    """

    def __init__(self, most: int, start: int = START, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.places = most, float(min(start, most))
        self._clock, self._taken, self._waiting = clock, 0, deque[asyncio.Future[None]]()
        self._changed = clock()

    async def enter(self) -> float:
        """Waits for a place; returns when it was taken."""
        while self._taken >= int(self.places):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake()  # the turn was ours and goes to the next
                raise
        self._taken += 1
        return self._clock()

    def leave(self, entered: float, *, trouble: bool) -> None:
        """Gives a place back, with the news whether the server was in trouble."""
        self._taken -= 1
        now = self._clock()
        if trouble and entered >= self._changed:
            self.places, self._changed = max(1.0, self.places / 2), now
        elif not trouble and now - self._changed >= QUIET:
            self.places, self._changed = min(float(self.most), self.places * GROWTH), now
        self._wake()

    def _wake(self) -> None:
        free = int(self.places) - self._taken
        while free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1


@dataclass(frozen=True)
class Budget:
    """What a run may use; None is no limit. Calls under way when a limit of tokens or money is met are finished.

    Attributes:
        calls: requests, retries among them.
        cost: money; needs the price of every endpoint.
        seconds: after which no call starts.
    """

    calls: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None

    def check(self, used: dict[str, Usage], prices: dict[str, Price | None], calls: int, elapsed: float) -> None:
        """Refuses the next call where something is used up.

        Raises:
            BudgetSpent: naming what is.
            SettingsError: money is limited and a price or a usage unknown.
        """
        total = sum(used.values(), Usage())
        if self.calls is not None and calls >= self.calls:
            raise BudgetSpent(f"the budget of {self.calls} calls is spent")
        for name, limit, spent in (
            ("prompt", self.prompt_tokens, total.prompt),
            ("completion", self.completion_tokens, total.completion),
        ):
            if limit is not None and spent >= limit:
                raise BudgetSpent(f"the budget of {limit} {name} tokens is spent")
        if self.cost is not None:
            costs = [usage.cost(prices[name]) for name, usage in used.items()]
            if None in costs or None in prices.values():
                raise SettingsError(
                    "a budget of money was given, but a price or the server's count of tokens is unknown",
                    fix="give the prices of every model, or a budget of tokens",
                )
            if sum(cost for cost in costs if cost is not None) >= self.cost:
                raise BudgetSpent(f"the budget of {self.cost:g} is spent")
        if self.seconds is not None and elapsed >= self.seconds:
            raise BudgetSpent(f"the time of {self.seconds:g} seconds is over")
