"""Exact properties of the models: causality, padding, closed forms, analytic derivatives, other people's numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_events import double, drawn_states, small

from burnish.events import (
    THP,
    EventDataset,
    EventSequence,
    ExponentialHawkes,
    LogNormalMixture,
    NextEvents,
    Smash,
    SmurfTHP,
)
from burnish.events.batches import EventBatch, PackedEvents, windows
from burnish.events.encoder import EncoderSettings, HistoryEncoder
from burnish.events.hawkes import PRESETS, simulate_hawkes, truth
from burnish.events.maths.quadrature import softplus_integral
from burnish.events.model import Objective, TrainingStatistics
from burnish.events.online import IncrementalEncoder, OnlineHazard


def packed(dataset: EventDataset, **extra) -> PackedEvents:
    return PackedEvents(dataset, 1.0, dtype=torch.float64, **extra)


@pytest.fixture(scope="module")
def data() -> EventDataset:
    return simulate_hawkes(PRESETS["hawkes3"], 4, num_events=12, seed=1)


# -- causality and padding -------------------------------------------------------------------------------------------


def test_changing_an_event_leaves_earlier_states_bit_equal(data: EventDataset) -> None:
    model = double(small(THP))
    batch = packed(data).batch([0])
    marks, times = batch.marks.clone(), batch.times.clone()
    marks[0, 7], times[0, 7] = (marks[0, 7] + 1) % 3, times[0, 7] + 0.01
    changed = replace(batch, marks=marks, times=times)
    before, after = model.states(batch), model.states(changed)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.equal(before[:, 8:], after[:, 8:])


def test_likelihood_of_an_event_does_not_see_its_own_mark(data: EventDataset) -> None:
    model = double(small(SmurfTHP))
    batch = packed(data).batch([0])
    marks = batch.marks.clone()
    marks[0, 7] = (marks[0, 7] + 1) % 3
    encoded, changed = model.states(batch), model.states(replace(batch, marks=marks))
    last = torch.zeros(1, dtype=torch.float64)
    gap = batch.gaps[0, 7:8]
    values = [model.log_density(model.condition(hidden[:, 7], last), gap) for hidden in (encoded, changed)]
    assert torch.equal(values[0], values[1])


@pytest.mark.parametrize("model", [THP, SmurfTHP, LogNormalMixture])
def test_padding_does_not_change_the_loss(model, data: EventDataset) -> None:
    short = EventSequence([0.0, 0.4, 1.7], [0, 2, 1], start=0.0)  # its first event is at t = 0
    long = data.sequences[0]
    net = double(small(model))
    both = packed(EventDataset((short, long), data.mark_names)).batch([0, 1])
    alone = packed(EventDataset((short,), data.mark_names)).batch([0])
    rows = net.histories(both)
    own = net.histories(alone)
    expected = net.log_density(own.condition, own.gap)
    assert torch.allclose(net.log_density(rows.condition, rows.gap)[: len(own.gap)], expected, atol=1e-12)


def test_incremental_encoding_equals_batch_encoding(data: EventDataset) -> None:
    encoder = double(small(THP)).encoder
    batch = packed(data).batch([2])
    whole = encoder(batch)[0]
    online = IncrementalEncoder(encoder, capacity=32)
    for i in range(12):
        state = online.step(float(batch.times[0, i]), float(batch.gaps[0, i]), int(batch.marks[0, i]))
        assert torch.allclose(torch.from_numpy(state), whole[i + 1], atol=1e-12)


def test_online_quantiles_equal_the_batched_ones() -> None:
    model = double(small(SmurfTHP))
    hidden = drawn_states(model, 1, seed=3)
    batched = NextEvents(model, model.condition(hidden, torch.zeros(1, dtype=torch.float64)))
    online = OnlineHazard(model).law(hidden[0].numpy())
    for q in (1e-4, 0.3, 0.9, 0.9999):
        for elapsed in (0.0, 0.7, 40.0):
            expected = float(batched.quantile(q, elapsed)[0, 0])
            assert online.quantile(q, elapsed) == pytest.approx(expected, rel=1e-9, abs=1e-12)
            assert online.cdf(expected, elapsed) == pytest.approx(q, abs=1e-9)


def test_windows_score_every_event_once() -> None:
    pieces = windows([1000, 30], window=256, context=64)
    scored = [i for piece in pieces if piece.sequence == 0 for i in range(piece.first, piece.stop)]
    assert scored == list(range(1000))
    assert all(piece.first - piece.begin == 64 for piece in pieces if piece.begin > 0)


def test_windowed_gaps_equal_the_gaps_of_the_whole_sequence(data: EventDataset) -> None:
    flat = packed(data, window=6, context=2)
    gaps = torch.cat([b.gaps[b.scored] for b in (flat.batch([i]) for i in range(len(flat)))])
    expected = np.concatenate([s.gaps for s in data.sequences])
    assert gaps.numpy() == pytest.approx(expected, abs=1e-14)


# -- closed forms ----------------------------------------------------------------------------------------------------


def test_thp_without_weights_is_a_poisson_process(data: EventDataset) -> None:
    model = double(small(THP, heads="none"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.intensity.weight.bias.fill_(0.3)
    rate = 3 * float(torch.nn.functional.softplus(torch.tensor(0.3, dtype=torch.float64)))
    histories = model.histories(packed(data).batch([0, 1]))
    expected = np.log(rate) - rate * histories.gap
    assert torch.allclose(model.log_density(histories.condition, histories.gap), expected, atol=1e-12)
    marks = model.mark_log_prob(histories.condition, histories.gap, histories.mark)
    assert torch.allclose(marks, torch.full_like(marks, -np.log(3)), atol=1e-12)


def test_thp_compensator_equals_the_dilogarithm(data: EventDataset) -> None:
    model = double(small(THP))
    histories = model.histories(packed(data).batch([0, 1, 2]))
    condition = histories.condition
    beta = model.intensity.log_beta.exp().detach().numpy()
    expected = softplus_integral(
        condition["level"].detach().numpy(), condition["slope"].detach().numpy(), histories.gap[:, None].numpy()
    )
    found = model.compensator(condition, histories.gap.unsqueeze(-1)).squeeze(-1).detach().numpy()
    assert found == pytest.approx((expected / beta).sum(1), rel=1e-6)


def test_thp_with_falling_slopes_may_stop() -> None:
    model = double(small(THP))
    with torch.no_grad():
        model.intensity.slope.fill_(-0.8)
    condition = model.condition(torch.zeros(1, 16, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    model.num_quadrature_nodes = 200
    far = model.compensator(condition, torch.full((1, 1), 60.0, dtype=torch.float64)).detach()
    assert float(model.prob_no_event(condition)[0]) == pytest.approx(float(torch.exp(-far)), rel=1e-6)


def test_thp_with_rising_slopes_never_stops() -> None:
    model = double(small(THP))
    with torch.no_grad():
        model.intensity.slope.fill_(0.2)
    condition = model.condition(torch.zeros(1, 16, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    assert float(model.prob_no_event(condition)[0]) == 0.0


@pytest.mark.parametrize("model", [SmurfTHP, LogNormalMixture, THP])
def test_density_integrates_to_the_drop_of_the_survival(model) -> None:
    net = double(small(model))
    condition = net.condition(drawn_states(net, 1), torch.zeros(1).double())
    z = torch.linspace(-16, 2.5, 6000, dtype=torch.float64)
    gaps = z.exp()
    rows = {name: value.expand(len(gaps), *value.shape[1:]) for name, value in condition.items()}
    mass = torch.trapezoid(net.log_density(rows, gaps).exp() * gaps, z)
    start, end = net.compensator(condition, gaps[None, [0, -1]])[0].detach()
    assert float(mass.detach()) == pytest.approx(float(torch.exp(-start) - torch.exp(-end)), abs=2e-4)


def test_exponential_hawkes_equals_the_true_likelihood(data: EventDataset) -> None:
    model = ExponentialHawkes(3).double()
    preset = PRESETS["hawkes3"]
    with torch.no_grad():
        model.log_mu.copy_(torch.log(torch.tensor(preset.mu)))
        model.log_jumps.copy_(torch.log(torch.tensor(preset.jumps) + 1e-300))
        model.log_decay.copy_(torch.log(torch.tensor(preset.decay)))
    histories = model.histories(packed(data).batch([3]))
    time = model.log_density(histories.condition, histories.gap)
    mark = model.mark_log_prob(histories.condition, histories.gap, histories.mark)
    assert float((time + mark).sum().detach()) == pytest.approx(truth(preset, data.sequences[3]).loglik, abs=1e-5)


def test_lognormal_mixture_of_one_component_is_scipy_lognormal() -> None:
    from scipy.stats import lognorm

    model = double(small(LogNormalMixture, num_components=1))
    condition = model.condition(torch.zeros(1, 16, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    condition = {name: value.detach() for name, value in condition.items()}
    law = lognorm(s=float(condition["log_scale"].exp()), scale=float(condition["mean"].exp()))
    gaps = torch.tensor([[0.2, 1.0, 4.0]], dtype=torch.float64)
    assert model.compensator(condition, gaps).detach().numpy()[0] == pytest.approx(-law.logsf(gaps[0]), rel=1e-10)
    expected = law.logpdf(gaps[0]) - law.logsf(gaps[0])
    assert model.log_hazard(condition, gaps).detach().numpy()[0] == pytest.approx(expected, rel=1e-9)


# -- derivatives -----------------------------------------------------------------------------------------------------


def test_analytic_hazard_slope_equals_autograd() -> None:
    model = double(small(SmurfTHP))
    hidden = drawn_states(model, 5)
    condition = model.condition(hidden, torch.zeros(5, dtype=torch.float64))
    gap = torch.tensor([[0.001, 0.3, 2.0, 30.0]], dtype=torch.float64).repeat(5, 1).requires_grad_()
    (expected,) = torch.autograd.grad(model.log_hazard(condition, gap).sum(), gap)
    _, slope = model.log_hazards_and_slopes(condition, gap)
    assert torch.allclose(slope.squeeze(-1), expected, atol=1e-10)


def test_score_equals_the_derivative_of_the_log_density() -> None:
    model = double(small(SmurfTHP))
    model.num_quadrature_nodes = 40  # the density's own derivative must not carry a quadrature error
    hidden = drawn_states(model, 5, seed=2)
    condition = model.condition(hidden, torch.zeros(5, dtype=torch.float64))
    gap = torch.tensor([0.01, 0.2, 1.0, 2.0, 6.0], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(model.log_density(condition, gap).sum(), gap)
    found = model.gap_score(condition, gap.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("objective", ["likelihood", "score", "score+mass"])
def test_loss_gradient_equals_finite_differences(objective: str, data: EventDataset) -> None:
    # The published code leaves the derivative of the hazard out of the graph; this fails for such a semi-gradient.
    model = double(small(SmurfTHP))
    batch = packed(data).batch([0, 1])
    parameter = model.time_head.scale_proj.weight

    def loss() -> torch.Tensor:
        generator = torch.Generator().manual_seed(4)
        return torch.stack(list(model.loss(batch, Objective(objective), generator).values())).sum()

    (gradient,) = torch.autograd.grad(loss(), parameter)
    direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    step = 1e-6
    with torch.no_grad():
        parameter += step * direction
        above = loss()
        parameter -= 2 * step * direction
        below = loss()
        parameter += step * direction
    assert float((gradient * direction).sum()) == pytest.approx(float((above - below) / (2 * step)), rel=1e-6, abs=1e-9)


# -- SMASH -----------------------------------------------------------------------------------------------------------


def test_smash_with_one_mark_scores_the_gap_alone() -> None:
    model = double(small(Smash, num_marks=1))
    hidden = drawn_states(model, 3)
    condition = model.condition(hidden, torch.zeros(3, dtype=torch.float64))
    gap = torch.tensor([[0.1, 1.0]], dtype=torch.float64).expand(3, -1)
    assert torch.allclose(
        model.mark_gap_scores(condition, gap).squeeze(-1), model.gap_score(condition, gap), atol=1e-12
    )


def test_smash_mark_probabilities_are_shares_of_the_hazards() -> None:
    model = double(small(Smash))
    condition = model.condition(drawn_states(model, 1), torch.zeros(1, dtype=torch.float64))
    gap = torch.tensor([[0.1, 1.0, 8.0]], dtype=torch.float64)
    hazards = model.log_hazards(condition, gap).exp()
    probs = model.mark_log_probs(condition, gap).exp()
    assert torch.allclose(probs, hazards / model.hazard(condition, gap).unsqueeze(-1), atol=1e-12)
    assert torch.allclose(probs.sum(-1), torch.ones_like(gap), atol=1e-14)


def test_smash_gap_score_is_the_mark_average_of_its_mark_scores() -> None:
    # psi(s) = sum_k p(k | s) psi(s | k) holds because d/ds log sum_k lam_k is the average of d/ds log lam_k.
    model = double(small(Smash))
    condition = model.condition(drawn_states(model, 1), torch.zeros(1, dtype=torch.float64))
    gap = torch.tensor([[0.1, 1.0, 8.0]], dtype=torch.float64)
    average = (model.mark_log_probs(condition, gap).exp() * model.mark_gap_scores(condition, gap)).sum(-1)
    assert torch.allclose(average, model.gap_score(condition, gap), atol=1e-12)


# -- other people's numbers ------------------------------------------------------------------------------------------


def test_encoder_equals_the_published_code(reference: Path) -> None:
    known = np.load(reference / "thp_official_tiny.npz")

    def weight(name: str) -> torch.Tensor:
        return torch.from_numpy(known[f"w::encoder.{name}"])

    sizes = EncoderSettings(
        hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, recurrent_size=0, clock="absolute"
    )
    encoder = HistoryEncoder(3, sizes)
    heads = weight("layer_stack.0.slf_attn.w_qs.weight").shape[0] // 8
    assert heads == encoder.head_shape[0]
    with torch.no_grad():
        encoder.mark_embedding.weight.copy_(weight("event_emb.weight")[1:])  # row 0 is its padding
        for i, layer in enumerate(encoder.layers):
            at = f"layer_stack.{i}.slf_attn"
            qkv = [weight(f"{at}.{name}.weight") for name in ("w_qs", "w_ks", "w_vs")]
            layer.qkv_proj.weight.copy_(torch.cat(qkv))
            layer.o_proj.weight.copy_(weight(f"{at}.fc.weight"))
            layer.o_proj.bias.copy_(weight(f"{at}.fc.bias"))
            layer.attention_norm.weight.copy_(weight(f"{at}.layer_norm.weight"))
            layer.attention_norm.bias.copy_(weight(f"{at}.layer_norm.bias"))
            at = f"layer_stack.{i}.pos_ffn"
            layer.up_proj.weight.copy_(weight(f"{at}.w_1.weight"))
            layer.up_proj.bias.copy_(weight(f"{at}.w_1.bias"))
            layer.down_proj.weight.copy_(weight(f"{at}.w_2.weight"))
            layer.down_proj.bias.copy_(weight(f"{at}.w_2.bias"))
            layer.feed_forward_norm.weight.copy_(weight(f"{at}.layer_norm.weight"))
            layer.feed_forward_norm.bias.copy_(weight(f"{at}.layer_norm.bias"))
    times = torch.from_numpy(known["event_time"])
    present = torch.from_numpy(known["event_type"] > 0)
    batch = EventBatch(
        times=times,
        gaps=torch.ones_like(times),
        marks=torch.from_numpy(known["event_type"] - 1).clamp_min(0),
        present=present,
        scored=present,
        waited=torch.zeros_like(times),
        tail=torch.full((2,), float("nan")),
        tail_waited=torch.zeros(2),
        locations=None,
        vertices=None,
        origin=torch.zeros(2, 2, dtype=torch.int64),
    )
    with torch.no_grad():
        found = encoder(batch)[:, 1:]
    expected = torch.from_numpy(known["encoder_output"])
    assert torch.allclose(found[present], expected[present], atol=2e-6)  # float32 on both sides


def test_thp_likelihood_equals_easytpp(reference: Path) -> None:
    known = np.load(reference / "easytpp030_thp_tiny.npz")
    model = THP(3, hidden_size=8, num_layers=1, num_heads=2, recurrent_size=0, heads="none").double()
    model.statistics, model.num_quadrature_nodes = TrainingStatistics(), 24
    with torch.no_grad():
        base = known["w::factor_intensity_base"][0] + known["w::layer_intensity_hidden.bias"]
        model.intensity.weight.weight.copy_(torch.from_numpy(known["w::layer_intensity_hidden.weight"]))
        model.intensity.weight.bias.copy_(torch.from_numpy(base))
        model.intensity.slope.copy_(torch.from_numpy(known["w::factor_intensity_decay"][0]))
        hidden = torch.from_numpy(known["enc"]).double()  # state i forecasts event i + 1
        present = torch.from_numpy(known["seq_non_pad_mask"])[:, 1:]
        gap = torch.from_numpy(known["time_delta_seqs"]).double()[:, 1:][present]
        mark = torch.from_numpy(known["type_seqs"])[:, 1:][present]
        condition = model.condition(hidden[present], torch.zeros_like(gap))
        total = model.log_density(condition, gap).sum() + model.mark_log_prob(condition, gap, mark).sum()
    # Their integral has 4,001 trapezoid points on float32 gaps.
    assert float(-total) == pytest.approx(float(known["loss_trapezoid4001"]), abs=2e-4)
    assert int(present.sum()) == int(known["num_events"])
