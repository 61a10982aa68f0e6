"""How surprising each event was: its probability given what came before, beside events that are known to be usual.

    surprise_i = -log p(s_i, k_i | H_i) nats
    p-value_i = (1 + number of calm events that surprise at least as much) / (1 + number of calm events)

The calm events are those of a part of the data that fitting did not learn from (`EventForecaster.calibrate`). Where new
events are exchangeable with them, p-values below a level are as frequent as the level, whatever the model: so many
false alarms are to be expected. The PIT says in which way a time was unusual: near 0 too early, near 1 too late.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from burnish.core.errors import SettingsError
from burnish.events.columns import shown_time
from burnish.events.data import EventDataset

if TYPE_CHECKING:
    from burnish.events.evaluation import ForecastEvaluation
    from burnish.events.forecaster import EventForecaster


def surprises(result: ForecastEvaluation) -> NDArray[np.float64]:
    """-log p of time and type of every scored event, in nats."""
    return -(result.events["loglik_time"] + result.events["loglik_mark"])


def p_values(surprise: NDArray[np.float64], calm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of sorted calm surprises that are at least as large, the event itself counted among them."""
    return (1 + len(calm) - np.searchsorted(calm, surprise, side="left")) / (1 + len(calm))


def table_of_surprises(forecaster: EventForecaster, dataset: EventDataset) -> Iterator[list[str]]:
    """A header and a row for every event after the first of a sequence.

    Raises:
        SettingsError: the forecaster was not calibrated.
    """
    if forecaster.calm is None:
        raise SettingsError("this forecaster does not know which surprises are usual", fix="fit it again")
    result = forecaster.score(dataset, bootstrap=0)
    surprise = surprises(result)
    values = p_values(surprise, forecaster.calm)
    yield ["sequence", "event", "time", "type", "pit", "surprise", "p_value"]
    for row, (sequence, index) in enumerate(zip(result.events["sequence"], result.events["index"], strict=True)):
        source = dataset.sequences[sequence]
        yield [
            source.name,
            str(index + 1),
            shown_time(source, float(source.times[index]), dataset.dates),
            dataset.mark_names[source.marks[index]],
            f"{result.events['pit'][row]:.4f}",
            f"{surprise[row]:.4f}",
            f"{values[row]:.4g}",
        ]
