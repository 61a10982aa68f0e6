"""Events at the same time as the one before: a probability of their own, learned from the history."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest_events import double, drawn_states, small

from burnish.core.errors import SettingsError
from burnish.events import THP, EventDataset, EventForecaster, LogNormalMixture, NextEvents, PlaceMixture, SmurfTHP
from burnish.events.model import TrainingStatistics
from burnish.events.sequence import EventSequence

AFTER = (0.6, 0.05)
"""P(tie) after an event of type 0 and of type 1."""


@pytest.fixture(scope="module")
def tied() -> EventDataset:
    """40 sequences of 60 events, ties by the type before and exponential gaps otherwise."""
    rng = np.random.default_rng(4)
    sequences = []
    for name in range(40):
        marks = rng.integers(0, 2, 60)
        tie = rng.random(60) < np.array(AFTER)[np.roll(marks, 1)]
        gaps = np.where(tie, 0.0, rng.exponential(size=60))
        sequences.append(EventSequence(np.cumsum(gaps), marks, name=str(name)))
    return EventDataset(tuple(sequences), ("a", "b"))


@pytest.fixture(scope="module")
def learned(tied: EventDataset) -> EventForecaster:
    forecaster = EventForecaster(small(SmurfTHP, num_marks=2))
    forecaster.fit(tied, tied, epochs=12, batch_size=8, lr=1e-2)
    return forecaster


@pytest.mark.slow
def test_the_probability_of_a_tie_is_learned_from_the_type_before(learned: EventForecaster, tied) -> None:
    probs = {0: [], 1: []}
    for sequence in tied.sequences[:10]:
        for stop in (20, 30, 40):
            probs[int(sequence.marks[stop - 1])].append(learned.next_event(sequence.head(stop)).prob_tie)
    for kind, expected in enumerate(AFTER):
        assert np.mean(probs[kind]) == pytest.approx(expected, abs=0.1)


def test_forecasts_with_ties_are_calibrated_and_told_apart(learned: EventForecaster, tied) -> None:
    with pytest.raises(SettingsError, match="bootstrap is -1"):
        learned.score(tied, bootstrap=-1)
    result = learned.score(tied, bootstrap=0)
    scores = result.scores
    assert scores["calibration_score_19"] < 0.03  # 2,360 events: three standard errors
    assert scores["loglik_tie"] + scores["loglik_untied"] == pytest.approx(scores["loglik_time"])
    rate = np.mean(AFTER)
    pooled = rate * np.log(rate) + (1 - rate) * np.log(1 - rate)
    assert scores["loglik_tie"] > pooled + 0.05  # better than one probability for all


@pytest.mark.parametrize("model", [THP, SmurfTHP, LogNormalMixture, PlaceMixture])
def test_a_law_with_a_point_mass_is_one(model) -> None:
    net = double(small(model, num_marks=2))
    net.statistics = TrainingStatistics(tie_share=0.3)
    hidden = drawn_states(net, 3)
    with torch.no_grad():
        law = NextEvents(net, net.condition_with_ties(hidden, torch.zeros(3).double()))
        plain = NextEvents(net, net.condition(hidden, torch.zeros(3).double()))
    tie = law.prob_tie.unsqueeze(-1)
    assert torch.allclose(law.cdf([0.0]), tie)
    assert torch.allclose(law.cdf([0.4]), tie + (1 - tie) * plain.cdf([0.4]))
    for q in (0.1, 0.5, 0.9):
        at = law.quantile(q)
        assert ((at == 0) == (tie >= q)).all()
        inside = (at > 0) & at.isfinite()
        rows = torch.where(inside, at, 1.0)
        assert torch.allclose(law.cdf(rows)[inside], torch.full_like(at[inside], q), atol=1e-8)
    assert torch.allclose(law.quantile(0.5, elapsed=0.2), plain.quantile(0.5, elapsed=0.2))  # no tie any more
    assert torch.allclose(law.mean(), (1 - law.prob_tie) * plain.mean())
    assert torch.allclose(law.mark_probs().sum(-1), torch.ones(3).double())
    gaps, _ = law.sample(4000, generator=torch.Generator().manual_seed(0))
    assert (gaps == 0).double().mean(-1).numpy() == pytest.approx(law.prob_tie.numpy(), abs=0.035)  # 4 errors
    zero = law.log_density(torch.zeros(3).double())
    assert torch.allclose(zero, law.prob_tie.log())


def test_a_stream_with_ties_says_what_the_file_says(learned: EventForecaster, tied) -> None:
    sequence = tied.sequences[3]
    stream = learned.stream()
    for time, mark in zip(sequence.times, sequence.marks, strict=True):
        stream.observe(float(time), int(mark))
    law = learned.next_event(sequence)
    for q in (0.02, 0.5, 0.9):
        assert stream.quantile(q) == pytest.approx(law.quantile(q), abs=1e-9)
    assert stream.cdf(0.0) == pytest.approx(law.prob_tie, abs=1e-12)


def test_cuts_lose_nothing_where_events_are_tied(learned: EventForecaster, tied) -> None:
    model = learned.exact

    def log_likelihood(*sequences: EventSequence) -> float:
        packed = model.pack(EventDataset(sequences, tied.mark_names))
        total = 0.0
        for index in range(len(packed)):
            histories = model.histories(packed.batch([index]))
            terms = model.negative_log_likelihood(histories).values()
            total -= float(sum(terms)) * max(len(histories.gap), 1)
        return total

    whole = replace(tied.sequences[0], end=float(tied.sequences[0].times[-1]) + 0.5)
    with torch.no_grad():
        expected = log_likelihood(whole)
        for time in (float(whole.times[10]), float(whole.times[10]) + 1e-3, float(whole.times[-1])):
            assert log_likelihood(*whole.cut(time)) == pytest.approx(expected, abs=1e-9)
