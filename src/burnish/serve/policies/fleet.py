"""Weights over several engines: each keeps a tree of its own, and now and then they tell each other what they served.

A node n of weight w_n (see `burnish.serve.policies.shares`) has over all K engines the runtime

    V_n += served to n since the last exchange / w_n,

and is lifted, when somebody begins to wait below it and nobody did at any engine, to the smallest V of its waiting
siblings, or of those that waited last, as in the tree of one engine. Every exchange sets the runtime that it has at
each engine to V_n. Until the next one an engine charges what it serves itself, at the weight

    w_{n,k} = w_n ((1 - K e) d_{n,k} / sum over k of d_{n,k} + e),    so that their sum is w_n,

where d is what the node can use there: the cost that was served to it since the last exchange and that of those who
wait, of which no more counts than the engine serves in that time; a mean that forgets within seconds. So a runtime
rises at every engine at the pace at which it rises over all, and what is to be made up for is made up for once, and not
by each engine. An engine that says nothing more is left out, and its weights go to the others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Account:
    """Of a node at an engine.

    Attributes:
        served: cost of all that was ever served below it there.
        waiting: cost of the prompts that wait below it there.
    """

    served: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """What an engine does with a node.

    Attributes:
        share: of the node's weight, that it has there.
        runtime: V, cost over weight.
    """

    share: float
    runtime: float


class Fleet:
    """What several engines know of each other.

    Args:
        weight: of a node.
        exchange: seconds between exchanges.
        memory: seconds in which what a node can use at an engine is forgotten to 1/e.
        floor: e, part of a weight that every engine has.
        lift_when_idle: whether one that begins to wait when no sibling does is lifted to one that waited last.
    """

    def __init__(
        self,
        weight: Callable[[Path], float],
        exchange: float = 1.0,
        *,
        memory: float = 5.0,
        floor: float = 0.01,
        lift_when_idle: bool = True,
    ) -> None:
        self.exchange = exchange
        self._weight, self._floor = weight, floor
        self._keep = math.exp(-exchange / memory)
        self._served: dict[str, dict[Path, int]] = {}
        self._usable: dict[str, dict[Path, float]] = {}
        self._runtime: dict[Path, float] = defaultdict(float)
        self._waited: set[Path] = set()
        self._lift_when_idle = lift_when_idle
        self._last: dict[Path, Path] = {}

    def exchanged(self, accounts: Mapping[str, Mapping[Path, Account]]) -> dict[str, dict[Path, Settlement]]:
        """What every engine is to do now.

        Args:
            accounts: of the engines that are there, by name. What one had served before it was first seen does not
                count, nor does what one had that begins anew.

        Returns:
            of each engine, for its nodes.
        """
        served = {name: self._gained(name, known) for name, known in accounts.items()}
        self._usable = {name: self._mixed(name, known, served[name]) for name, known in accounts.items()}
        for gained in served.values():
            for path, cost in gained.items():
                self._runtime[path] += cost / self._weight(path)
        self._lift({path for known in accounts.values() for path, one in known.items() if one.waiting})
        shares = self._shares()
        return {
            name: {path: Settlement(shares[name][path], self._runtime[path]) for path in known}
            for name, known in accounts.items()
        }

    def _gained(self, name: str, known: Mapping[Path, Account]) -> dict[Path, int]:
        """Cost that an engine has served since the last exchange."""
        before = self._served.get(name)
        self._served[name] = {path: one.served for path, one in known.items()}
        if before is None:
            return dict.fromkeys(known, 0)
        return {path: max(0, one.served - before.get(path, 0)) for path, one in known.items()}

    def _mixed(self, name: str, known: Mapping[Path, Account], gained: Mapping[Path, int]) -> dict[Path, float]:
        """d of every node of an engine."""
        whole = sum(cost for path, cost in gained.items() if len(path) == 1)
        before, keep = self._usable.get(name, {}), self._keep
        return {
            path: keep * before.get(path, 0.0)
            + (1 - keep) * (gained[path] + (min(one.waiting, whole) if whole else one.waiting))
            for path, one in known.items()
        }

    def _shares(self) -> dict[str, dict[Path, float]]:
        num, totals = len(self._usable), defaultdict(float)
        for usable in self._usable.values():
            for path, cost in usable.items():
                totals[path] += cost
        floor = min(self._floor, 0.5 / num) if num else 0.0
        return {
            name: {
                path: (1 - num * floor) * cost / totals[path] + floor if totals[path] else 1 / num
                for path, cost in usable.items()
            }
            for name, usable in self._usable.items()
        }

    def _lift(self, waiting: set[Path]) -> None:
        """Who begins to wait is not paid for the time before."""
        siblings: dict[Path, list[Path]] = defaultdict(list)
        for path in waiting & self._waited:
            siblings[path[:-1]].append(path)
        first = {parent: min(several, key=self._runtime.__getitem__) for parent, several in siblings.items()}
        known = self._last | first if self._lift_when_idle else first
        for path in waiting - self._waited:
            if path[:-1] in known:
                self._runtime[path] = max(self._runtime[path], self._runtime[known[path[:-1]]])
        for path in sorted(waiting, key=self._runtime.__getitem__, reverse=True):
            self._last[path[:-1]] = path  # of siblings the one with the smallest
        self._waited = waiting
