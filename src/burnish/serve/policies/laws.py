"""What was seen before, as laws: durations of pauses, lengths of answers."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence

FEW = 100
"""Values from which a law of its own is taken; with not more it is that of a larger group."""
KEPT = 1000
"""Values that a law remembers."""
MOST = 1000
"""Laws that are remembered; names come from clients."""


class Law:
    """The last values that were seen."""

    def __init__(self) -> None:
        self.sorted: list[float] = []
        self._recent: deque[float] = deque()

    def add(self, value: float) -> None:
        self._recent.append(value)
        insort(self.sorted, value)
        if len(self._recent) > KEPT:
            del self.sorted[bisect_right(self.sorted, self._recent.popleft()) - 1]

    def quantiles(self, levels: Sequence[float]) -> list[float]:
        """The smallest value seen that a share of at least `level` of all is not above."""
        last = len(self.sorted) - 1
        return [self.sorted[min(last, max(0, -int(-level * (last + 1) // 1) - 1))] for level in levels]

    def best_hold(self, worth: float) -> float:
        """The smallest tau, of 0 and the values seen, at which P(T <= tau) worth - E[min(T, tau)] is largest."""
        num, best, at, before = len(self.sorted), 0.0, 0.0, 0.0
        for number, pause in enumerate(self.sorted, start=1):
            if pause == math.inf:
                break
            before += pause
            if (gain := (number * worth - before - (num - number) * pause) / num) > best:
                best, at = gain, pause
        return at

    def best_longest_hold(self, worth: float) -> float:
        """The same where a hold costs its longest time: of P(T <= tau) worth - tau."""
        best, at, share = 0.0, 0.0, worth / len(self.sorted)
        for number, pause in enumerate(self.sorted, start=1):
            if pause > worth:
                break
            if number * share - pause > best:
                best, at = number * share - pause, pause
        return at

    def chance(self, elapsed: float, until: float) -> float:
        """P(T <= until | T > elapsed)."""
        gone, there = bisect_right(self.sorted, elapsed), bisect_right(self.sorted, until)
        left = len(self.sorted) - gone
        return (there - gone) / left if left else 0.0

    def mean_rest(self, elapsed: float, until: float) -> float:
        """E[min(T, until) - elapsed | T > elapsed]."""
        later = self.sorted[bisect_right(self.sorted, elapsed) :]
        if not later:
            return until - elapsed
        return sum(min(pause, until) - elapsed for pause in later) / len(later)


class Laws:
    """A law for each of many groups, and of all together."""

    def __init__(self) -> None:
        self.of_all = Law()
        self._of: OrderedDict[Hashable, Law] = OrderedDict()

    def add(self, value: float, *groups: Hashable) -> None:
        """A value that belongs to each of `groups`."""
        self.of_all.add(value)
        for group in groups:
            self._of.setdefault(group, Law()).add(value)
            self._of.move_to_end(group)
        while len(self._of) > MOST:
            self._of.popitem(last=False)

    def find(self, *groups: Hashable) -> Law | None:
        """That of the first group of which more than `FEW` values were seen, of all in the end; None before that."""
        for group in groups:
            law = self._of.get(group)
            if law is not None and len(law.sorted) > FEW:
                return law
        return self.of_all if len(self.of_all.sorted) > FEW else None
