"""The density of the place: a density, sampled as it says, with the places of the last events in it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_events import double, small

from burnish.events import EventDataset, EventForecaster, PlaceMixture
from burnish.events.distribution import NextEvents
from burnish.events.spatial import (
    add_location_scores,
    baseline_location_evaluation,
    location_evaluation,
    place_levels,
)


def mixture(**extra) -> PlaceMixture:
    model = small(PlaceMixture, num_marks=2, place_size=16, num_free=3, num_centres=4, num_recent=5, **extra)
    assert isinstance(model, PlaceMixture)
    return model


@pytest.fixture(scope="module")
def drawn(places: EventDataset) -> PlaceMixture:
    model = double(mixture())
    with torch.no_grad():
        model.free_proj.weight.mul_(0.1)
        model.scale_proj.weight.mul_(0.1)
        model.free_proj.bias.view(3, 5)[:, 2:4].fill_(0.5)  # wide Gaussians, but not beyond the grid that integrates
        model.scale_proj.bias.add_(1.5)
    return model


def condition_of(model: PlaceMixture, places: EventDataset) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model.histories(model.pack(places).batch([0])).condition


def test_the_density_of_the_place_integrates_to_one(drawn: PlaceMixture, places: EventDataset) -> None:
    condition = {name: value[3:4] for name, value in condition_of(drawn, places).items()}
    axis = torch.linspace(-40, 40, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).expand(1, -1, -1)
    gap = torch.full(grid.shape[:2], 0.7, dtype=torch.float64)
    with torch.no_grad():
        parts = [
            drawn.location_log_density(condition, g, s).exp().sum(1)
            for g, s in zip(grid.split(40_000, 1), gap.split(40_000, 1), strict=True)
        ]
    mass = torch.stack(parts).sum(0) * float(axis[1] - axis[0]) ** 2
    assert mass.numpy() == pytest.approx(1.0, abs=2e-2)  # the narrowest Gaussians are as narrow as a cell


def test_samples_of_the_place_have_the_moments_of_the_mixture(drawn: PlaceMixture, places: EventDataset) -> None:
    condition = {name: value[3:4] for name, value in condition_of(drawn, places).items()}
    gap = torch.full((1, 40_000), 0.7, dtype=torch.float64)
    found = drawn.sample_locations(condition, gap, generator=torch.Generator().manual_seed(0))[0]
    with torch.no_grad():
        log_weight, mean, log_scale, _ = (part[0, 0] for part in drawn._components(condition, gap[:, :1]))
    weight = log_weight.exp().unsqueeze(-1)
    centre = (weight * mean).sum(0)
    variance = (weight * (mean.square() + (2 * log_scale).exp())).sum(0) - centre.square()
    error = (variance / len(found)).sqrt()
    assert (found.mean(0) - centre).abs().lt(4 * error).all()
    assert found.var(0).numpy() == pytest.approx(variance.numpy(), rel=0.1)


def test_nothing_points_to_places_before_the_first(drawn: PlaceMixture, places: EventDataset) -> None:
    condition = condition_of(drawn, places)
    gap = torch.ones(len(condition["recent_age"]), 1, dtype=torch.float64)
    with torch.no_grad():
        log_weight = drawn._components(condition, gap)[0].squeeze(1)
    pointers = log_weight[:, -15:].unflatten(-1, (5, 3)).exp()
    assert (pointers[0] == 0).all()
    assert (pointers[2, 2:] == 0).all() and (pointers[2, :2] > 0).all()


def test_a_stream_says_the_same_about_the_place(drawn: PlaceMixture, places: EventDataset) -> None:
    forecaster = EventForecaster(drawn)
    forecaster.mark_names = places.mark_names
    history = places.sequences[0]
    assert history.locations is not None
    stream = forecaster.stream(start=history.start)
    for time, mark, place in zip(history.times, history.marks, history.locations, strict=True):
        stream.observe(float(time), int(mark), location=(float(place[0]), float(place[1])))
    batched, online = forecaster.next_event(history).many.condition, stream.next_event().many.condition
    for name, value in batched.items():
        assert torch.allclose(value.double(), online[name].double(), atol=1e-9), name


@pytest.mark.slow
def test_a_walk_is_learned_to_go_on_from_where_it_is(places: EventDataset, tmp_path: Path) -> None:
    """Steps of 0.3 from the last place; the overall spread of the places is several times that."""
    forecaster = EventForecaster(mixture())
    forecaster.fit(places, places, epochs=25, batch_size=4, lr=1e-2)
    result = forecaster.score(places, bootstrap=0)
    add_location_scores(forecaster, places, result, num_events=200)
    ideal = -np.log(2 * np.pi * 0.3**2) - 1
    every = np.concatenate([s.locations for s in places.sequences if s.locations is not None])
    pooled = -np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(np.cov(every.T))[1] - 1
    assert pooled + 0.5 * (ideal - pooled) < result.scores["loglik_location"]
    again = EventForecaster.from_pretrained(forecaster.save_pretrained(tmp_path / "m"))
    region = again.next_event(places.sequences[0]).location_region(0.9, num_samples=60)
    expected = forecaster.next_event(places.sequences[0]).location_region(0.9, num_samples=60)
    assert np.array_equal(region.samples, expected.samples)


def test_nats_of_the_place_are_in_the_unit_of_the_data(drawn: PlaceMixture, places: EventDataset) -> None:
    condition = condition_of(drawn, places)
    law = NextEvents(drawn, condition)
    here, gap = torch.zeros(len(law), 2), torch.ones(len(law))
    value = law.location_log_density(here, gap)
    statistics = drawn.statistics
    wide = type(statistics)(**(vars(statistics) | {"location_scale": (10.0, 10.0)}))
    drawn.statistics = wide
    try:
        again = law.location_log_density(here, gap)
    finally:
        drawn.statistics = statistics
    assert value is not None and again is not None
    assert (value - again).numpy() == pytest.approx(np.log(100.0))


def test_a_model_and_the_kernel_density_are_scored_on_the_same_places(
    drawn: PlaceMixture, places: EventDataset
) -> None:
    forecaster = EventForecaster(drawn)
    cut = places.split_by_time((0.5, 0.2, 0.3))
    found = location_evaluation(forecaster, cut[2], num_events=40, num_samples=20)
    beside, _ = baseline_location_evaluation(*cut, num_events=40, num_samples=20)
    pairs = [sorted(zip(e.sequence.tolist(), e.index.tolist(), strict=True)) for e in (found, beside)]
    assert pairs[0] == pairs[1]
    assert 20 < len(pairs[0]) < 60
    assert all(cut[2].sequences[s].context <= i for s, i in pairs[0])


@pytest.mark.slow
def test_regions_of_a_wrong_law_hold_what_they_say_at_moved_levels(drawn: PlaceMixture, places: EventDataset) -> None:
    forecaster = EventForecaster(drawn)
    even, odd = (places.with_sequences(places.sequences[start::2]) for start in (0, 1))
    ranks = location_evaluation(forecaster, odd, num_events=500, num_samples=40).values["location_rank"]
    levels = place_levels(forecaster, even)
    assert abs((ranks <= 0.5).mean() - 0.5) > 0.15  # as it is
    assert (ranks <= levels.level(0.5)).mean() == pytest.approx(0.5, abs=0.12)
