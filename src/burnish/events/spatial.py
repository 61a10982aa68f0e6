"""Scores of the place, by sampling: regions that cover, distance and energy score, on a spread of events."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from burnish.events import metrics
from burnish.events.data import EventDataset
from burnish.events.distribution import NextEvents
from burnish.events.evaluation import Evaluation
from burnish.events.forecaster import EventForecaster
from burnish.events.locations import LocationRegion, highest_density_region, location_scores
from burnish.events.model import row_chunks, select

LOCATION_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""The levels of SMASH (arXiv 2310.16310)."""


def add_location_scores(
    forecaster: EventForecaster,
    test: EventDataset,
    result: Evaluation,
    *,
    num_events: int = 500,
    num_samples: int = 300,
    seed: int = 0,
) -> tuple[LocationRegion, NDArray[np.float64], NDArray[np.float64]]:
    """Adds location_cs, location_error and energy_score to a result, over `num_events` events spread over the test.

    Places are drawn given sampled gaps, as a forecast before the event must be. Returns what the density map shows.
    """
    model = forecaster.model
    packed = model.pack(test)
    packed.start_known[:] = False
    generator = torch.Generator().manual_seed(seed)
    share = min(1.0, num_events / packed.num_scored)
    rng = np.random.default_rng(seed)
    samples, observed, shown = [], [], None
    mean, scale = np.array(model.statistics.location_mean), np.array(model.statistics.location_scale)
    with torch.no_grad():
        for batch in packed.batches(32):
            histories = model.histories(batch)
            assert histories.location is not None
            chosen = torch.from_numpy(np.flatnonzero(rng.random(len(histories.gap)) < share))
            if not len(chosen):
                continue
            condition = select(histories.condition, chosen)
            places = histories.location[chosen].double().numpy() * scale + mean
            for rows in row_chunks(condition, 64):
                law = NextEvents(model, select(condition, rows), renormalise=forecaster.renormalise)
                gaps, _ = law.sample(num_samples, generator=generator)
                samples.append(law.location_sample(gaps, generator=generator).numpy())
                observed.append(places[rows])
            if shown is None:
                middle = len(chosen) // 2
                row, column = batch.scored.nonzero()[int(chosen[middle])].tolist()
                assert batch.locations is not None
                shown = middle, batch.locations[row, :column].double().numpy() * scale + mean
    drawn, seen = np.concatenate(samples), np.concatenate(observed)
    values = location_scores(drawn, seen)
    rank = values["location_rank"]
    result.scores["location_cs"] = float(np.mean([abs((rank <= q).mean() - q) for q in LOCATION_LEVELS]))
    result.scores["location_ks"] = metrics.pit_ks(rank)
    result.scores["location_error"] = float(values["location_error"].mean())
    result.scores["energy_score"] = float(values["energy_score"].mean())
    result.scores["num_location_events"] = len(rank)
    for name in ("location_error", "energy_score"):
        result.errors[name] = float(values[name].std(ddof=1) / np.sqrt(len(rank)))
    assert shown is not None
    middle, before = shown
    return highest_density_region(drawn[middle], 0.9), before, seen[middle]
