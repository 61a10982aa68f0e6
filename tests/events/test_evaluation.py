"""What an evaluation says: closed means, constant gaps, infinite scores, and first of all where the model loses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest_events import double, small

from burnish.events import THP, EventDataset, EventForecaster, LogNormalMixture, NextEvents, SmurfTHP
from burnish.events.model import Objective
from burnish.events.report import headline, score_table
from burnish.events.training import TrainingSettings, validation_loss


def test_mean_of_a_heavy_tail_is_the_closed_form() -> None:
    model = double(small(LogNormalMixture))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.mixture_proj.bias[32:] = np.log(4.0)  # sigma 4, mu 0: the mean is e^8
    condition = model.condition(torch.zeros(1, 16).double(), torch.zeros(1).double())
    assert float(NextEvents(model, condition).mean()[0]) == pytest.approx(np.exp(8.0), rel=1e-9)


def test_constant_gaps_are_scored_without_a_division_by_zero() -> None:
    dataset = EventDataset.from_sequences([np.arange(20.0)] * 12, [[0] * 20] * 12)
    forecaster = EventForecaster(small(SmurfTHP, num_marks=1))
    forecaster.fit(dataset, dataset, epochs=2)
    with np.errstate(divide="raise", invalid="raise"):
        result = forecaster.score(dataset, bootstrap=5)
        said = headline(forecaster, result, dataset.sequences[0])
    assert said[0].startswith("A forecast without a model is better here in times")


def test_a_model_that_loses_to_a_baseline_says_so_first(fitted: EventForecaster, parts) -> None:
    result = fitted.score(parts[2], bootstrap=0)
    better = {name: values | {"accuracy": 1.0} for name, values in result.baselines.items()}
    said = headline(fitted, replace(result, baselines=better), None)
    assert "types" in said[0] and "100.0" in said[0] and "better" in said[0]
    worse = {name: dict.fromkeys(("crps",), 99.0) | {"accuracy": 0.0} for name in result.baselines}
    assert "better" not in headline(fitted, replace(result, baselines=worse), None)[0]


def test_an_equal_error_is_called_equal(fitted: EventForecaster, parts) -> None:
    result = fitted.score(parts[2], bootstrap=0)
    same = {"empirical by previous type": {"crps": result.scores["crps"], "accuracy": 0.0}}
    said = " ".join(headline(fitted, replace(result, baselines=same), None))
    assert "is that of the best forecast without a model" in said and "0.0" not in said


def test_infinite_scores_have_no_error(fitted: EventForecaster, parts) -> None:
    forecaster = EventForecaster(small(THP))
    forecaster.fit(parts[0], parts[1], epochs=1)
    with torch.no_grad():
        forecaster.model.intensity.slope.fill_(-5.0)
        forecaster.model.intensity.weight.bias.fill_(-2.0)
    with np.errstate(invalid="raise"):  # no infinity is taken from another
        result = forecaster.score(parts[2], bootstrap=5)
    assert np.isinf(result.scores["crps"]) and "crps" not in result.errors
    assert np.isinf(result.scores["width_50"]) and not np.isnan(result.events["width_50"]).any()
    assert all("nan" not in cell.text for s in score_table(result).sections for row in s.rows for cell in row.cells)


def test_heads_beside_the_law_do_not_choose_the_epoch(parts) -> None:
    model = small(THP)
    packed, settings = model.pack(parts[1]), TrainingSettings()
    before = validation_loss(model, packed, Objective(), settings)
    with torch.no_grad():
        model.time_head.weight.add_(10.0)
        model.type_head.weight.mul_(-3.0)
    assert validation_loss(model, packed, Objective(), settings) == before
