"""Forecasts of a live scheduler, and how good they were: how long will an answer be, when does a workflow return.

The law of an answer's length is that of the answers seen of the same tenant to prompts of the same size (a power of two
of tokens), then of the tenant, then of all; that of a pause, of the same tool, then of all, or that of a trained model
(`burnish.serve.policies.pauses`). A forecast is the law's
`LEVELS` quantiles. It is made before anything of the outcome is known and scored when that comes:

    CRPS = 2 mean over levels of max(q (y - Q_q), (q - 1)(y - Q_q)),

a proper score, so that it pays nobody to say what he does not believe, and the share of outcomes between the 10 % and
the 90 % quantile, which is 0.8 where the law is right and outcomes are seldom equal.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np

from burnish.events.metrics import crps_from_quantiles
from burnish.serve.policies.laws import Law, Laws
from burnish.serve.policies.pauses import PauseLaws, SeenPauses
from burnish.serve.policies.protocol import Job

LEVELS = tuple((place + 0.5) / 20 for place in range(20))
_LOW, _HIGH = 1, 17
"""Places of the quantiles at 7.5 % and 87.5 %; 10 % and 90 % are half way to the next ones."""
RECENT = 200
MOST_OPEN = 100_000
"""Forecasts whose outcome is awaited; the oldest are given up."""
SECOND = 1e9


class Scores:
    """Of one kind of forecast.

    Attributes:
        num: outcomes.
        crps: their sum.
        error: sum of the distances between outcomes and medians.
        inside: outcomes within the central 80 %.
        recent: whether each of the last ones was.
    """

    def __init__(self) -> None:
        self.num, self.crps, self.error, self.inside = 0, 0.0, 0.0, 0
        self.recent: deque[bool] = deque(maxlen=RECENT)

    def add(self, quantiles: Sequence[float], outcome: float) -> bool:
        """Scores a forecast; whether the outcome was within the central 80 %."""
        self.num += 1
        self.crps += float(crps_from_quantiles(np.array([quantiles]), np.array([outcome]))[0])
        self.error += abs(outcome - (quantiles[9] + quantiles[10]) / 2)
        low, high = interval(quantiles)
        inside = low <= outcome <= high
        self.inside += inside
        self.recent.append(inside)
        return inside

    def means(self) -> dict[str, float]:
        """For metrics; nothing before the first outcome."""
        if not self.num:
            return {}
        return {
            "outcomes": self.num,
            "crps": self.crps / self.num,
            "median_error": self.error / self.num,
            "coverage_80": self.inside / self.num,
        }


def interval(quantiles: Sequence[float]) -> tuple[float, float]:
    """The central 80 %."""
    return (
        (quantiles[_LOW] + quantiles[_LOW + 1]) / 2,
        (quantiles[_HIGH] + quantiles[_HIGH + 1]) / 2,
    )


class Forecasts:
    """Makes forecasts, learns from outcomes and scores them.

    Args:
        pauses: laws of pauses; what was seen where nothing is said.
    """

    def __init__(self, pauses: PauseLaws | None = None) -> None:
        self.lengths, self.pauses = Scores(), Scores()
        self._length_laws, self._pause_laws = Laws(), pauses or SeenPauses()
        self._lengths: OrderedDict[str, list[float]] = OrderedDict()
        self._pauses: OrderedDict[str, list[float]] = OrderedDict()

    def asked(self, job: Job) -> list[float] | None:
        """Of the tokens of an answer: quantiles at `LEVELS`; None before enough was seen."""
        return self._open(self._lengths, job.name, self._length_laws.find(*_groups(job)))

    def answered(self, job: Job, output: int) -> None:
        forecast = self._lengths.pop(job.name, None)
        if forecast:
            self.lengths.add(forecast, output)
        self._length_laws.add(output, *_groups(job))

    def forget(self, job: Job) -> None:
        """It was given up."""
        self._lengths.pop(job.name, None)

    def paused(self, program: str, tool: str) -> list[float] | None:
        """Of the seconds until a workflow's next turn, likewise."""
        return self._open(self._pauses, program, self._pause_laws.find(program, tool))

    def returned(self, program: str, tool: str, pause: int) -> bool | None:
        """Whether the pause was within the central 80 % of its forecast; None without one."""
        forecast = self._pauses.pop(program, None)
        self._pause_laws.add(program, tool, pause / SECOND)
        return self.pauses.add(forecast, pause / SECOND) if forecast else None

    def over(self, program: str) -> None:
        """A workflow has had its last turn."""
        self._pauses.pop(program, None)
        self._pause_laws.forget(program)

    def _open(self, kept: OrderedDict[str, list[float]], name: str, law: Law | None) -> list[float] | None:
        kept.pop(name, None)
        if law is None:
            return None
        made = kept[name] = law.quantiles(LEVELS)
        if len(kept) > MOST_OPEN:
            kept.popitem(last=False)
        return made


def _groups(job: Job) -> tuple[tuple[str, int], tuple[str, int]]:
    return (job.tenant, job.prompt.bit_length()), (job.tenant, 0)
