"""Longitudes and latitudes: the date line is no border, and densities are of the sphere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_events import double, small
from hypothesis import given
from hypothesis import strategies as st
from test_command import SMALL, call

from burnish.core.errors import BurnishError
from burnish.events import EventDataset, EventForecaster, EventSequence, PlaceMixture
from burnish.events.locations import location_scores
from burnish.events.maths.sphere import embedded, local, mean_longitude, unwrapped, wrapped
from burnish.events.spatial import add_location_scores

degrees = st.floats(-180, 179.999)


def walks(meridian: float, count: int = 12) -> EventDataset:
    """Steps of about a degree around a place on a meridian."""
    rng = np.random.default_rng(3)
    sequences = []
    for name in range(count):
        times = np.cumsum(rng.exponential(1.0, 25))
        walk = np.cumsum(rng.normal(0, 0.8, (25, 2)), 0) + np.array([meridian, 40.0])
        sequences.append(EventSequence(times, np.zeros(25, int), locations=wrapped(walk), start=0.0, name=str(name)))
    return EventDataset(tuple(sequences), ("quake",), sphere=True)


@given(degrees, st.floats(-89.99, 89.99), degrees)
def test_unwrapping_changes_no_place(longitude: float, latitude: float, meridian: float) -> None:
    place = np.array([longitude, latitude])
    near = unwrapped(place, meridian)
    assert abs(near[0] - meridian) <= 180 + 1e-9
    assert embedded(near) == pytest.approx(embedded(place), abs=1e-9)
    assert embedded(wrapped(near + np.array([360.0, 0.0]))) == pytest.approx(embedded(place), abs=1e-9)


def test_beyond_a_pole_is_its_other_side() -> None:
    assert wrapped(np.array([10.0, 95.0])) == pytest.approx([-170.0, 85.0])
    assert wrapped(np.array([10.0, -95.0])) == pytest.approx([-170.0, -85.0])


def test_degrees_are_of_arc() -> None:
    here, there = np.array([179.5, 60.0]), np.array([-179.5, 60.0])
    assert local(there, here) == pytest.approx([0.5, 0.0])
    assert np.linalg.norm(embedded(there) - embedded(here)) == pytest.approx(0.5, rel=1e-3)
    assert abs(mean_longitude(np.array([179.0, -179.0]))) == pytest.approx(180.0)


def test_scores_do_not_see_the_date_line() -> None:
    rng = np.random.default_rng(0)
    samples, observed = rng.normal(0, 1, (5, 80, 2)), rng.normal(0, 1, (5, 2))
    found = []
    for longitude in (0.0, 180.0):
        moved = np.array([longitude, 10.0])
        found.append(location_scores(wrapped(samples + moved), wrapped(observed + moved), sphere=True))
    for name, values in found[0].items():
        assert found[1][name] == pytest.approx(values, abs=1e-9), name


def test_a_fit_across_the_date_line_is_that_elsewhere() -> None:
    found = []
    for meridian in (20.0, 180.0):
        data = walks(meridian)
        forecaster = EventForecaster(small(PlaceMixture, num_marks=1, place_size=16, num_free=3, num_centres=4))
        forecaster.fit(data, data, epochs=2, batch_size=4)
        result = forecaster.score(data, bootstrap=0)
        add_location_scores(forecaster, data, result, num_events=100)
        region = forecaster.next_event(data.sequences[0]).location_region(0.5)
        found.append((result.scores["loglik_location"], result.scores["energy_score"], np.ptp(region.x)))
    assert found[1] == pytest.approx(found[0], rel=2e-3)


def test_the_density_is_one_of_the_sphere() -> None:
    """Wide Gaussians reach around the earth; what crosses the seam is counted on its other side."""
    data = walks(150.0)
    model = double(small(PlaceMixture, num_marks=1, place_size=16, num_free=3, num_centres=4, num_recent=5))
    model.statistics = replace(model.statistics, sphere=True, location_mean=(150.0, 10.0), location_scale=(40.0, 10.0))
    with torch.no_grad():
        for parameter in (model.free_proj.weight, model.scale_proj.weight, model.centre_scale_shift):
            parameter.mul_(0.1)
        condition = {k: v[3:4] for k, v in model.histories(model.pack(data).batch([0])).condition.items()}
        longitude = torch.arange(-30.0, 330.0, 2.0, dtype=torch.float64) + 1.0
        latitude = torch.arange(-90.0, 90.0, 1.0, dtype=torch.float64) + 0.5
        grid = torch.cartesian_prod(longitude, latitude)
        places = torch.from_numpy(model.statistics.standardised(grid.numpy())).unsqueeze(0)
        gap = torch.full(places.shape[:2], 0.7, dtype=torch.float64)
        density = model.location_log_density(condition, places, gap).exp()[0] / (40.0 * 10.0)
    area = 2.0 * 1.0 * torch.deg2rad(grid[:, 1]).cos()
    assert float((density * area).sum()) == pytest.approx(1.0, abs=0.02)


def test_samples_are_degrees() -> None:
    data = walks(180.0)
    model = double(small(PlaceMixture, num_marks=1))
    model.statistics = replace(model.statistics, sphere=True, location_mean=(180.0, 40.0), location_scale=(30.0, 30.0))
    forecaster = EventForecaster(model)
    law = forecaster.next_event(data.sequences[0]).many
    places = law.location_sample(torch.ones(1, 500, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    assert (places[..., 0].abs() <= 180).all() and (places[..., 1].abs() <= 90).all()


def test_the_command_joins_the_date_line(tmp_path: Path) -> None:
    rows = ["sequence_id,time,lon,lat"]
    for s in walks(180.0):
        assert s.locations is not None
        rows += [f"{s.name},{t},{x},{y}" for t, (x, y) in zip(s.times, s.locations, strict=True)]
    (tmp_path / "q.csv").write_text("\n".join(rows) + "\n")
    where = ["--x", "lon", "--y", "lat", "--sphere"]
    call("fit", tmp_path / "q.csv", "-o", tmp_path / "m", *where, *SMALL)
    call("forecast", tmp_path / "m", tmp_path / "q.csv", "-o", tmp_path / "next.csv")
    place = [float(v) for v in (tmp_path / "next.csv").read_text().splitlines()[1].split(",")[-3:]]
    assert abs(place[0]) > 160 and 20 < place[1] < 60 and place[2] < 20
    with pytest.raises(BurnishError, match="the longitude as the first column"):
        call("fit", tmp_path / "q.csv", "-o", tmp_path / "n", "--x", "lat", "--y", "lon", "--sphere", *SMALL)
    with pytest.raises(BurnishError, match="no places"):
        call("fit", tmp_path / "q.csv", "-o", tmp_path / "n", "--sphere", *SMALL)
