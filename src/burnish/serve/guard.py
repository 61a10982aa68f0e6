"""When a live policy is left: the conditions under which a server falls back to plain telemetry by itself.

* **Forecasts are lost**: of the last `RECENT` pauses less than `LEAST_INSIDE` were within the central 80 % of what was
  forecast.
* **Others pay**: requests of no held context wait, at the 95th percentile, `slower` times as long for their first token
  as those of control times. Nothing new is held in a control time, a tenth of all time; its requests are the control,
  so that both sides meet the same load.
* **Holds are over their budget** for `BUDGET_SECONDS`, whatever the reason.
"""

from __future__ import annotations

from collections import deque

import numpy as np

SECOND = 1e9
LEAST_INSIDE = 0.6
LEAST = 100
"""Outcomes of a kind before anything is concluded."""
KEPT = 500
BUDGET_SECONDS = 30.0
PERIOD, CONTROL = 600.0, 60.0
"""Seconds: the first `CONTROL` of every `PERIOD` are a control time."""


class PolicyGuard:
    """Watches over a live policy; all times are seconds.

    Args:
        slower: how much longer than the control others may wait.
    """

    def __init__(self, slower: float = 1.1) -> None:
        self._slower = slower
        self._waits: dict[bool, deque[float]] = {side: deque(maxlen=KEPT) for side in (False, True)}
        self._inside: deque[bool] = deque(maxlen=LEAST * 2)
        self._over: float | None = None
        self._changed = False

    @staticmethod
    def is_control(now: float) -> bool:
        """Whether nothing new is held now."""
        return now % PERIOD < CONTROL

    @staticmethod
    def counts_as_control(arrival: float) -> bool:
        """Whether a request that came then is of the control: the first half of its time is for older holds to end."""
        return CONTROL / 2 <= arrival % PERIOD < CONTROL

    def first_token(self, arrival: float, waited: float) -> None:
        """A request of no held context has its first token."""
        if self.counts_as_control(arrival) or not self.is_control(arrival):
            self._waits[self.counts_as_control(arrival)].append(waited)
            self._changed = True

    def forecast(self, *, inside: bool) -> None:
        self._inside.append(inside)
        self._changed = True

    def held(self, now: float, *, over: bool) -> None:
        """How the held blocks are now beside their budget."""
        if not over:
            self._over = None
        elif self._over is None:
            self._over = now

    def why(self, now: float) -> str:
        """The reason to leave the policy; empty where there is none."""
        if self._over is not None and now - self._over >= BUDGET_SECONDS:
            return f"holds were over their budget for {BUDGET_SECONDS:g} s"
        if not self._changed:
            return ""
        self._changed = False
        if len(self._inside) >= LEAST and (share := sum(self._inside) / len(self._inside)) < LEAST_INSIDE:
            return f"{share:.0%} of the last pauses were within the central 80 % of their forecast"
        if min(len(side) for side in self._waits.values()) < LEAST:
            return ""
        with_holds, control = (float(np.quantile(self._waits[side], 0.95)) for side in (False, True))
        if with_holds > self._slower * control:
            return (
                f"95 % of first tokens of requests without a hold came within {with_holds:.3g} s, and within "
                f"{control:.3g} s in control times"
            )
        return ""
