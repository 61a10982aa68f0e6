"""What past events have to do with a forecast: the forecast with and without each of them.

    influence_j = log lam(s | H) - log lam(s | H without event j)

of the total rate after a wait s. Of a Hawkes process it is exact in closed form: without event j the rate is lower by
what that event excites, so that 1 - exp(-influence_j) is its share of the rate. Of a network it is an occlusion: times
of the others stay as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from burnish.core.errors import DataError, SettingsError
from burnish.events.ahead import conditions
from burnish.events.sequence import EventSequence

if TYPE_CHECKING:
    from burnish.events.forecaster import EventForecaster


@torch.no_grad()
def influence(
    forecaster: EventForecaster, history: EventSequence, wait: float, *, num_events: int = 50
) -> NDArray[np.float64]:
    """Of each of the last events of a history on the log rate after a wait, the oldest of them first.

    Args:
        wait: since the last event, in the data's unit.
        num_events: at most so many of the last events.

    Raises:
        DataError: the history has fewer than two events.
        SettingsError: a wait that is not positive and finite.
    """
    n = len(history)
    if n < 2:
        raise DataError(f"has {n} events, so that none can be left out", where="history", fix="give two or more")
    if not 0 < wait < np.inf:
        raise SettingsError(f"wait is {wait}, but must be positive and finite")
    model = forecaster.exact
    unit = model.statistics.mean_gap
    rows = range(max(n - num_events, 0), n)
    without = [_without(replace(history, end=None), row) for row in rows]
    # The wait counts from the last event that is left: of the history without its last one it is longer.
    last = np.array([float(one.times[-1]) for one in without])
    gap = torch.from_numpy(float(history.times[-1]) + wait - last).unsqueeze(-1) / unit
    full = model.log_hazard(conditions(forecaster, [history]), torch.tensor([[wait / unit]], dtype=torch.float64))
    rest = model.log_hazard(conditions(forecaster, without), gap)
    return (full - rest).squeeze(-1).double().numpy()


def _without(history: EventSequence, row: int) -> EventSequence:
    kept = np.arange(len(history)) != row
    arrays = {name: getattr(history, name) for name in ("times", "marks", "locations", "vertices", "covariates")}
    left = {name: None if value is None else value[kept] for name, value in arrays.items()}
    return replace(history, context=min(history.context, len(history) - 1), since=None, **left)
