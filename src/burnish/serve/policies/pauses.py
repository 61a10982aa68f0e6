"""The law of the pause that follows a tool call: of what was seen, or of a trained model of events.

`SeenPauses` is the law of the last pauses after the same tool, then after any tool. `ForecastPauses` asks a forecaster
of `burnish.events` for the pause of *this* workflow: its pauses so far are the events of a sequence whose clock stands
still while the workflow is served,

    t_0 = 0, t_k = T_0 + ... + T_{k-1},     mark of t_k = the tool called there, "last" for the end of the last turn,

so that the gap after event k is the pause T_k, and its law knows the tools and the pauses before it. The law is taken
as `POINTS` quantiles at the middles of equal shares, straight between the 129 edges of its table; what is asked of it,
also after a part of the pause was waited, is exact for those. A workflow that called a tool which the model does not
know has the law of what was seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from burnish.core.errors import SettingsError
from burnish.serve.policies.laws import Law, Laws

if TYPE_CHECKING:
    from burnish.events.forecaster import EventForecaster

POINTS = 200
RECALLED = 32
"""Pauses of a workflow that its next one is forecast from."""
MOST_PROGRAMS = 10_000
"""Workflows whose pauses are remembered; names come from clients."""
LAST = "last"


class PauseLaws(Protocol):
    """Laws of pauses, in seconds."""

    def find(self, program: str, tool: str) -> Law | None:
        """Of the pause that follows a call of `tool` in a workflow; None before anything is known."""
        ...

    def add(self, program: str, tool: str, seconds: float) -> None:
        """A workflow came back so long after a call of `tool`."""
        ...

    def forget(self, program: str) -> None:
        """A workflow has ended."""
        ...


class SeenPauses:
    """The last pauses after the same tool; after any tool where there are few of those."""

    def __init__(self) -> None:
        self._laws = Laws()

    def find(self, program: str, tool: str) -> Law | None:
        return self._laws.find(tool)

    def add(self, program: str, tool: str, seconds: float) -> None:
        self._laws.add(seconds, tool)

    def forget(self, program: str) -> None:
        pass


class ForecastPauses:
    """What a trained forecaster says after the pauses that a workflow has had.

    Args:
        forecaster: fitted to sequences as above, in seconds.
    """

    def __init__(self, forecaster: EventForecaster) -> None:
        self._forecaster = forecaster
        self._marks = {name: place for place, name in enumerate(forecaster.mark_names)}
        self._seen = SeenPauses()
        self._histories: OrderedDict[str, list[tuple[str, float]]] = OrderedDict()
        self._laws: dict[str, tuple[tuple[str, int], Law]] = {}  # of the pause under way, with its tool and number

    def find(self, program: str, tool: str) -> Law | None:
        whole = self._histories.get(program, [])
        history, now = whole[-RECALLED:], (tool, len(whole))
        found = self._laws.get(program)
        if found is None or found[0] != now:
            tools = [*(name for name, _ in history), tool]
            if not all(name in self._marks for name in tools):
                return self._seen.find(program, tool)
            found = now, self._law(tools, [seconds for _, seconds in history])
            self._laws.pop(program, None)
            self._laws[program] = found
            if len(self._laws) > MOST_PROGRAMS:
                del self._laws[next(iter(self._laws))]
        return found[1]

    def _law(self, tools: Sequence[str], pauses: Sequence[float]) -> Law:
        from burnish.events.sequence import EventSequence

        times = np.concatenate([[0.0], np.cumsum(pauses)])
        sequence = EventSequence(times, np.array([self._marks[name] for name in tools]), start=0.0)
        law = Law()
        many = self._forecaster.next_event(sequence).many
        # At the edges of the law's table alone: exact quantiles cost ten times as much.
        chance = 1 - many.edge_survival[0].numpy()
        edges = many.table.edges.double().numpy() * many.unit
        levels = (np.arange(POINTS) + 0.5) / POINTS
        law.sorted = np.where(levels > chance[-1], np.inf, np.interp(levels, chance, edges)).tolist()
        return law

    def add(self, program: str, tool: str, seconds: float) -> None:
        self._seen.add(program, tool, seconds)
        if program:
            self._histories.setdefault(program, []).append((tool, seconds))
            self._histories.move_to_end(program)
            if len(self._histories) > MOST_PROGRAMS:
                self._histories.popitem(last=False)

    def forget(self, program: str) -> None:
        self._histories.pop(program, None)
        self._laws.pop(program, None)


def read_pauses(directory: Path) -> ForecastPauses:
    """The laws of a forecaster that `burnish events fit` has saved.

    Raises:
        CheckpointError: it is none.
        SettingsError: it was fitted to another unit than seconds.
    """
    from burnish.events.forecaster import EventForecaster

    forecaster = EventForecaster.from_pretrained(directory)
    if forecaster.unit not in ("", "s", "seconds"):
        what = f"was fitted to times in {forecaster.unit}"
        raise SettingsError(what, where=str(directory), fix="fit it to pauses.parquet, whose times are seconds")
    return ForecastPauses(forecaster)


def pause_events(turns: Sequence[tuple[str, float]]) -> list[tuple[float, str]]:
    """Events of a workflow from (tool, pause after it in seconds) of its turns; that of the last is not looked at."""
    found, clock = [], 0.0
    for place, (tool, pause) in enumerate(turns):
        is_last = place + 1 == len(turns)
        found.append((clock, LAST if is_last else tool))
        clock += 0.0 if is_last else max(0.0, pause)
    return found
