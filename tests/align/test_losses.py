"""The maths of the preference losses: high-precision arithmetic, other people's numbers, exact properties."""

import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from burnish.align.losses import LOSSES, aps, aps_quadratic, aps_r3m, bt, pair_loss, r3m, smoothed_pair_loss
from burnish.align.maths.adaptive import information_root
from burnish.align.maths.bradley_terry import information
from burnish.core.errors import NumericalError, SettingsError

REFERENCE = Path(__file__).parents[1] / "reference" / "align"
MARGINS = [-50.0, -30.0, -7.5, -3.0, -1.2, -0.4, -1e-3, 0.0, 1e-3, 0.02, 0.3, 1.0, 2.5, 6.0, 14.0, 30.0, 50.0]
APS_SETTINGS = [(0.1, 0.1, 4.0), (0.05, 0.1, 5.0), (0.3, 0.1, 3.0), (0.5, 0.1, 3.0), (0.02, 1.0, 1.0), (0.9, 0.2, 2.0)]
double = {"dtype": torch.float64}


def precise_information(u):
    """h(u) in 40 digits."""
    return mpmath.log(2) + mpmath.log(1 / (1 + mpmath.exp(-u))) - u / (1 + mpmath.exp(u))


def precise_aps(m, rho0, tau0, tau_max):
    """(loss, tau) by bisection on the slope in tau, 40 digits."""
    low, high = mpmath.mpf(tau0), mpmath.mpf(tau_max)
    slope = lambda tau: rho0 - precise_information(abs(m) / tau)  # noqa: E731
    if slope(low) >= 0:
        tau = low
    elif slope(high) <= 0:
        tau = high
    else:
        for _ in range(120):
            middle = (low + high) / 2
            low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        tau = low
    return tau * mpmath.log(1 + mpmath.exp(-m / tau)) + (rho0 - mpmath.log(2)) * tau, tau


@pytest.mark.parametrize(("rho0", "tau0", "tau_max"), APS_SETTINGS)
def test_aps_loss_and_scale_equal_a_40_digit_bisection(rho0, tau0, tau_max):
    with mpmath.workdps(40):
        expected = [precise_aps(mpmath.mpf(m), mpmath.mpf(rho0), tau0, tau_max) for m in MARGINS]
    loss, found = aps(torch.tensor(MARGINS, **double), rho0=rho0, tau0=tau0, tau_max=tau_max)
    np.testing.assert_allclose(found["tau"], [float(tau) for _, tau in expected], rtol=1e-12)
    np.testing.assert_allclose(loss, [float(value) for value, _ in expected], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rho0", [0.05, 0.1, 0.3, 0.5])
def test_aps_scale_in_float32_equals_a_40_digit_bisection_to_one_millionth(rho0):
    margins = torch.logspace(-3, math.log10(30), 25)
    with mpmath.workdps(40):
        expected = [float(precise_aps(mpmath.mpf(float(m)), mpmath.mpf(rho0), 0.1, 5.0)[1]) for m in margins]
    _, found = aps(margins, rho0=rho0, tau0=0.1, tau_max=5.0)
    np.testing.assert_allclose(found["tau"], expected, rtol=1e-6)


def test_information_roots_equal_the_published_table():
    expected = {0.05: 0.6489845566, 0.1: 0.9434431176, 0.5: 2.9832412476}
    assert {rho0: round(information_root(rho0), 10) for rho0 in expected} == expected


def test_information_is_exact_where_its_closed_form_cancels():
    points = [1e-6, 1e-3, 0.05, 0.0999, 0.1001, 0.5, 3.0, 40.0]
    with mpmath.workdps(40):
        expected = [float(precise_information(mpmath.mpf(u))) for u in points]
    np.testing.assert_allclose(information(torch.tensor(points, **double)), expected, rtol=3e-13)


@pytest.mark.parametrize("rho0", [0.02, 0.1, 0.3])
def test_quadratic_aps_equals_a_40_digit_minimisation(rho0):
    def slope(tau, m):
        return 2 * rho0 * tau - precise_information(m / tau)

    margins = [-20.0, -3.0, -0.5, 0.0, 0.2, 1.0, 4.0, 25.0]
    expected = []
    with mpmath.workdps(40):
        for m in margins:
            low, high = mpmath.mpf("0.1"), max(mpmath.mpf("0.1"), mpmath.log(2) / (2 * rho0))
            for _ in range(120):
                middle = (low + high) / 2
                low, high = (middle, high) if slope(middle, m) < 0 else (low, middle)
            value = low * mpmath.log(1 + mpmath.exp(-m / low)) - mpmath.log(2) * low + rho0 * low**2
            expected.append((float(low), float(value)))
    loss, found = aps_quadratic(torch.tensor(margins, **double), rho0=rho0, tau0=0.1)
    np.testing.assert_allclose(found["tau"], [tau for tau, _ in expected], rtol=1e-11)
    np.testing.assert_allclose(loss, [value for _, value in expected], rtol=1e-11, atol=1e-12)


def test_r3m_equals_the_reference_numbers():
    rows = json.loads((REFERENCE / "r3m_pointwise.json").read_text())
    for lam in {row["lam"] for row in rows}:
        of_lam = [row for row in rows if row["lam"] == lam]
        m = torch.tensor([float(row["margin"]) for row in of_lam], requires_grad=True, **double)
        loss, found = r3m(m, lam=lam)
        (slope,) = torch.autograd.grad(loss.sum(), m)
        np.testing.assert_allclose(loss.detach(), [row["loss"] for row in of_lam], rtol=1e-13)
        np.testing.assert_allclose(found["delta"], [row["delta"] for row in of_lam], rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(slope, [row["dloss_dmargin"] for row in of_lam], rtol=1e-12)


@pytest.mark.parametrize("lam", [0.1, 0.3, 0.5, 0.75, 0.9])
def test_r3m_equals_30_digit_arithmetic_on_margins_to_50(lam):
    with mpmath.workdps(60):  # 1 + exp(-50) needs 22 digits before the 30 that count
        t = mpmath.log(1 / mpmath.mpf(lam) - 1)
        offsets = [max(t - m, mpmath.mpf(0)) for m in MARGINS]
        expected = [
            float(mpmath.log(1 + mpmath.exp(-(m + d))) + lam * d) for m, d in zip(MARGINS, offsets, strict=True)
        ]
    loss, _ = r3m(torch.tensor(MARGINS, **double), lam=lam)
    np.testing.assert_allclose(loss, expected, rtol=1e-13)


def fitted(problem, loss_of_margins, start):
    """The linear reward that minimises mean loss + l2/2 |w|^2, by L-BFGS on autograd gradients."""
    differences, l2 = torch.tensor(problem["A"]), float(problem["l2"])

    def objective(weights):
        w = torch.tensor(weights, requires_grad=True)
        value = loss_of_margins(differences @ w).mean() + l2 / 2 * w.square().sum()
        value.backward()
        return value.item(), w.grad.numpy()

    return minimize(objective, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-16, "gtol": 1e-10})


@pytest.mark.parametrize("setting", ["a", "b", "c", "d", "e"])
def test_linear_reward_fitted_by_aps_equals_the_reference_solution(setting):
    problem = np.load(REFERENCE / "aps_joint.npz", allow_pickle=False)
    rho0, tau0, tau_max, _ = problem[f"{setting}/cfg"]
    start = np.zeros(problem["A"].shape[1])
    found = fitted(problem, lambda m: aps(m, rho0=rho0, tau0=tau0, tau_max=tau_max)[0], start)
    assert found.fun == pytest.approx(float(problem[f"{setting}/obj"]), abs=1e-8)
    np.testing.assert_allclose(found.x, problem[f"{setting}/w"], atol=2e-3 * np.abs(found.x).max())


def test_aps_with_both_bounds_one_has_the_solution_of_bradley_terry():
    problem = np.load(REFERENCE / "aps_joint.npz", allow_pickle=False)
    start = problem["bt/w"]
    scaled = fitted(problem, lambda m: aps(m, rho0=0.1, tau0=1.0, tau_max=1.0)[0], start).x
    plain = fitted(problem, lambda m: bt(m)[0], start).x
    np.testing.assert_allclose(scaled, plain, atol=1e-8)


def test_learned_scale_grows_and_shrinks_with_rho_as_published():
    problem = np.load(REFERENCE / "aps_joint.npz", allow_pickle=False)
    ours = {}
    for key in ("a", "b", "c"):
        rho0, tau0, tau_max, _ = problem[f"{key}/cfg"]
        setting = {"rho0": rho0, "tau0": tau0, "tau_max": tau_max}
        w = fitted(problem, lambda m, setting=setting: aps(m, **setting)[0], 0 * problem["bt/w"]).x
        ours[key] = np.linalg.norm(w) / np.linalg.norm(problem["bt/w"])
    assert ours["a"] == pytest.approx(3.5, abs=0.1)
    assert ours["b"] == pytest.approx(4.3, abs=0.15)
    assert ours["c"] == pytest.approx(0.14, abs=0.01)


# -- limits and identities ---------------------------------------------------------------------------------------------

margins = st.floats(-60, 60, allow_nan=False)
aps_settings = st.tuples(st.floats(0.005, 0.69), st.floats(0.02, 2.0), st.floats(0.0, 6.0)).map(
    lambda s: {"rho0": s[0], "tau0": s[1], "tau_max": s[1] + s[2]}
)


@given(margins, st.floats(math.log(2), 50), st.floats(0.05, 3))
def test_aps_beyond_log_two_is_bradley_terry_at_the_lowest_temperature(m, rho0, tau0):
    margin = torch.tensor([m], **double)
    loss, found = aps(margin, rho0=rho0, tau0=tau0, tau_max=tau0 + 2)
    expected = tau0 * bt(margin / tau0)[0] + (rho0 - math.log(2)) * tau0
    assert found["tau"].item() == tau0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-13, abs=1e-13)


@given(margins.filter(lambda m: abs(m) > 1e-3))
def test_aps_with_a_vanishing_radius_takes_the_largest_scale(m):
    _, found = aps(torch.tensor([m], **double), rho0=1e-12, tau0=0.1, tau_max=5.0)
    assert found["tau"].item() == 5.0


@given(margins, st.floats(0.01, 0.69))
def test_aps_with_both_bounds_one_is_bradley_terry_up_to_a_constant(m, rho0):
    margin = torch.tensor([m], **double)
    difference = aps(margin, rho0=rho0, tau0=1.0, tau_max=1.0)[0] - bt(margin)[0]
    assert difference.item() == pytest.approx(rho0 - math.log(2), abs=1e-12)


@given(margins, margins, aps_settings)
def test_aps_scale_is_even_and_grows_with_the_size_of_the_margin(first, second, setting):
    small, large = sorted((abs(first), abs(second)))
    _, found = aps(torch.tensor([small, large, -large], **double), **setting)
    tau = found["tau"]
    assert tau[0] <= tau[1] == tau[2]


def test_aps_scale_of_margin_zero_is_the_lower_bound():
    assert aps(torch.zeros(1), rho0=0.1, tau0=0.25, tau_max=4.0)[1]["tau"].item() == 0.25


@given(st.floats(-10, 40))
def test_r3m_with_lambda_one_is_bradley_terry(m):
    margin = torch.tensor([m], **double)
    assert abs(r3m(margin, lam=1 - 1e-9)[0] - bt(margin)[0]).item() < 1e-6


@given(margins, st.floats(0.02, 0.98))
@settings(max_examples=50)
def test_no_offset_on_a_grid_beats_the_one_r3m_finds(m, lam):
    margin = torch.tensor([m], **double)
    grid = torch.linspace(-60, 60, 4001, **double)
    alternatives = bt(margin + grid)[0] + lam * grid.abs()
    assert r3m(margin, lam=lam)[0].item() <= alternatives.min().item() + 1e-12


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.75])
def test_r3m_and_its_slope_are_continuous_at_the_threshold(lam):
    t = math.log(1 / lam - 1)
    m = torch.tensor([t - 1e-9, t, t + 1e-9], requires_grad=True, **double)
    loss, _ = r3m(m, lam=lam)
    (slope,) = torch.autograd.grad(loss.sum(), m)
    assert loss.detach().diff().abs().max() < 2e-9
    np.testing.assert_allclose(slope, -lam, atol=1e-9)


@given(st.lists(margins, min_size=1, max_size=20), st.floats(0.02, 0.98))
def test_no_pair_pulls_harder_than_lambda(values, lam):
    m = torch.tensor(values, requires_grad=True, **double)
    (slope,) = torch.autograd.grad(r3m(m, lam=lam)[0].sum(), m)
    assert slope.abs().max() <= lam + 1e-15


@given(margins, aps_settings, st.floats(0.05, 0.95).filter(lambda lam: abs(lam - 0.5) > 1e-3))
@settings(max_examples=60)
def test_combination_is_no_higher_than_any_scale_and_offset_on_a_grid(m, setting, lam):
    margin = torch.tensor([m], **double)
    found = aps_r3m(margin, lam=lam, **setting)[0].item()
    tau = torch.linspace(setting["tau0"], setting["tau_max"], 41, **double)[:, None]
    at_joint = (tau * math.log(1 / lam - 1) - m).clamp(min=0)  # the best offset of each scale is on the grid too
    delta = torch.cat([torch.linspace(-5, 130, 271, **double)[None, :].expand(41, -1), at_joint], dim=1)
    values = tau * bt((m + delta) / tau)[0] + (setting["rho0"] - math.log(2)) * tau + lam * delta.abs()
    assert found <= values.min().item() + 1e-11


@given(margins, aps_settings, st.floats(0.05, 0.95))
@settings(max_examples=60)
def test_combination_is_attained_by_the_scale_and_offset_it_reports(m, setting, lam):
    margin = torch.tensor([m], **double)
    loss, found = aps_r3m(margin, lam=lam, **setting)
    tau, delta = found["tau"], found["delta"]
    value = tau * bt((margin + delta) / tau)[0] + (setting["rho0"] - math.log(2)) * tau + lam * delta
    assert loss.item() == pytest.approx(value.item(), rel=1e-12, abs=1e-12)


def precise_combination(m, rho0, tau0, tau_max, lam):
    """min over tau by ternary search on the convex profile, the offset minimised out, 40 digits."""
    t = mpmath.log(1 / lam - 1)

    def value(tau):
        offset = max(tau * t - m, mpmath.mpf(0))
        return tau * mpmath.log(1 + mpmath.exp(-(m + offset) / tau)) + (rho0 - mpmath.log(2)) * tau + lam * offset

    low, high = mpmath.mpf(tau0), mpmath.mpf(tau_max)
    for _ in range(90):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if value(left) <= value(right) else (left, high)
    return value((low + high) / 2)


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.75])
@pytest.mark.parametrize(("rho0", "tau0", "tau_max"), APS_SETTINGS[:4])
def test_combination_equals_a_40_digit_minimisation(rho0, tau0, tau_max, lam):
    with mpmath.workdps(40):
        numbers = [mpmath.mpf(value) for value in (rho0, tau0, tau_max, lam)]
        expected = [float(precise_combination(mpmath.mpf(m), *numbers)) for m in MARGINS]
    loss, _ = aps_r3m(torch.tensor(MARGINS, **double), rho0=rho0, tau0=tau0, tau_max=tau_max, lam=lam)
    np.testing.assert_allclose(loss, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(LOSSES))
@given(margins, margins, st.floats(0, 1), aps_settings, st.floats(0.05, 0.95))
@settings(max_examples=60)
def test_losses_are_convex_and_fall_with_the_margin(name, first, second, share, setting, lam):
    between = share * first + (1 - share) * second
    points = torch.tensor([first, second, between], **double)
    one, other, middle = pair_loss(name, points, lam=lam, **setting)[0].tolist()
    assert middle <= share * one + (1 - share) * other + 1e-12 * (1 + abs(one) + abs(other))
    assert (one - other) * (first - second) <= 1e-12


@given(margins, aps_settings)
def test_combination_with_an_unreachable_price_is_aps(m, setting):
    margin = torch.tensor([m], **double)
    together = aps_r3m(margin, lam=1 - 1e-14, **setting)[0]
    assert together.item() == pytest.approx(aps(margin, **setting)[0].item(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize(("rho0", "lam"), [(0.1, 0.75), (0.3, 0.3), (0.05, 0.5)])
def test_losses_are_convex_and_their_slope_equals_central_differences(name, rho0, lam):
    m = torch.linspace(-12, 12, 2401, requires_grad=True, **double)
    value = {"rho0": rho0, "tau0": 0.1, "tau_max": 3.0, "lam": lam}
    loss, found = pair_loss(name, m, **value)
    (slope,) = torch.autograd.grad(loss.sum(), m)
    step = 0.01
    central = (loss[2:] - loss[:-2]).detach() / (2 * step)
    assert loss.detach().diff().diff().min() > -1e-13  # second differences of a convex function
    # away from kinks of the second derivative the central difference is good to step^2 max|f'''|/6, and
    # max|f'''| <= 0.1/tau0^2; at a kink to step max|f''| <= step 0.25/tau0
    np.testing.assert_allclose(slope[1:-1], central, atol=0.026)
    assert (slope[1:-1] - central).abs().median() < 1e-4
    np.testing.assert_allclose(-slope, found["weight"], atol=1e-14)
    assert slope.abs().max() <= 1 + 1e-15


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_losses_are_finite_for_extreme_margins_in_low_precision(name, dtype):
    m = torch.tensor([0.0, 1e4, -1e4, 3e-5, -3e-5], dtype=dtype, requires_grad=True)
    loss, found = pair_loss(name, m, rho0=0.1, tau0=0.1, tau_max=5.0, lam=0.75)
    (slope,) = torch.autograd.grad(loss.sum(), m)
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(values).all() for values in (loss, slope, *found.values()))
    assert slope[2] <= -0.74  # a very wrong pair keeps its pull, where log(sigmoid + eps) would lose it


def test_population_optimum_takes_an_end_of_the_interval_by_the_entropy_of_the_preference():
    # Prop. 3.1: minimise p f(m) + (1-p) f(-m); tau* is tau_max when H(p) + rho0 - log 2 < 0 and tau0 when > 0
    for p, rho0 in [(0.95, 0.1), (0.6, 0.1), (0.8, 0.05), (0.7, 0.3)]:
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        grid = torch.linspace(-20, 20, 400001, **double)
        at = {"rho0": rho0, "tau0": 0.5, "tau_max": 3.0}
        risk = p * aps(grid, **at)[0] + (1 - p) * aps(-grid, **at)[0]
        expected = 3.0 if entropy + rho0 - math.log(2) < 0 else 0.5
        best = grid[risk.argmin()]
        assert best.item() == pytest.approx(expected * math.log(p / (1 - p)), abs=2e-3)


@pytest.mark.slow
def test_population_optimum_of_the_quadratic_penalty():
    # Prop. 3.2: tau* = max(tau0, (log 2 - H(p)) / (2 rho0))
    for p, rho0 in [(0.95, 0.1), (0.9, 0.05), (0.6, 0.1)]:
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        grid = torch.linspace(-20, 20, 100001, **double)
        risk = p * aps_quadratic(grid, rho0=rho0, tau0=0.1)[0] + (1 - p) * aps_quadratic(-grid, rho0=rho0, tau0=0.1)[0]
        tau = max(0.1, (math.log(2) - entropy) / (2 * rho0))
        assert grid[risk.argmin()].item() == pytest.approx(tau * math.log(p / (1 - p)), abs=2e-3)


@pytest.mark.parametrize(
    ("rho0", "steps", "low", "high"),
    [(0.05, 3, 0.38, 0.50), (0.05, 5, 0.0, 0.01), (0.3, 100, 0.12, 0.20), (0.5, 100, 0.25, 0.36)],
)
def test_newton_solver_of_the_reference_fails_where_it_was_measured_to_fail(rho0, steps, low, high):
    m = 2 * torch.randn(20_000, generator=torch.Generator().manual_seed(0), **double)
    tau_max = {0.05: 5.0, 0.3: 3.0, 0.5: 3.0}[rho0]
    at = {"rho0": rho0, "tau0": 0.1, "tau_max": tau_max}
    exact = aps(m, **at)[1]["tau"]
    newton = aps(m, solver="newton", steps=steps, **at)[1]["tau"]
    share = ((newton - exact).abs() > 0.05 * exact).double().mean().item()
    assert low <= share <= high


def test_label_smoothing_is_the_expected_loss_of_a_wrong_label():
    m = torch.linspace(-4, 4, 41, requires_grad=True, **double)
    loss, found = smoothed_pair_loss("aps", m, 0.2, rho0=0.1, tau0=0.1, tau_max=4.0)
    (slope,) = torch.autograd.grad(loss.sum(), m)
    at = {"rho0": 0.1, "tau0": 0.1, "tau_max": 4.0}
    np.testing.assert_allclose(loss.detach(), (0.8 * aps(m, **at)[0] + 0.2 * aps(-m, **at)[0]).detach(), rtol=1e-14)
    np.testing.assert_allclose(-slope, found["weight"], atol=1e-14)


def test_profile_and_joint_minimisation_of_r3m_give_the_same_reward():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 5, generator=generator, **double)
    x[:30] *= -1  # thirty corrupted labels
    x = x * torch.sign(x @ torch.ones(5, **double))[:, None] * torch.where(torch.arange(200) < 30, -1, 1)[:, None]
    lam, l2 = 0.3, 1e-3

    def profile(weights):
        w = torch.tensor(weights, requires_grad=True)
        value = r3m(x @ w, lam=lam)[0].mean() + l2 * w.square().sum()
        value.backward()
        return value.item(), w.grad.numpy()

    def joint(both):
        w, d = torch.tensor(both[:5], requires_grad=True), torch.tensor(both[5:], requires_grad=True)
        value = (bt(x @ w + d)[0] + lam * d).mean() + l2 * w.square().sum()
        value.backward()
        return value.item(), np.concatenate([w.grad.numpy(), d.grad.numpy()])

    tight = {"ftol": 1e-16, "gtol": 1e-11, "maxiter": 20_000, "maxfun": 40_000}
    first = minimize(profile, np.zeros(5), jac=True, method="L-BFGS-B", options=tight).x
    bounds = [(None, None)] * 5 + [(0, None)] * 200
    start = np.concatenate([first + 0.3, np.full(200, 0.5)])
    second = minimize(joint, start, jac=True, method="L-BFGS-B", bounds=bounds, options=tight).x[:5]
    np.testing.assert_allclose(second, first, atol=1e-6 * max(1, np.abs(first).max()))


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: aps(m, rho0=0.0), "rho0 is 0, but it must be above 0"),
        (lambda m: aps(m, rho0=-0.1), "rho0 is -0.1"),
        (lambda m: aps(m, tau0=0.0), "tau0 is 0"),
        (lambda m: aps(m, tau0=2.0, tau_max=1.0), "tau0 is 2, above tau_max 1"),
        (lambda m: aps(m, solver="bisect"), "solver is 'bisect'"),
        (lambda m: r3m(m, lam=0.0), "lam is 0, but it must lie strictly between 0 and 1"),
        (lambda m: r3m(m, lam=1.0), "lam is 1"),
    ],
)
def test_impossible_settings_are_refused(call, message):
    with pytest.raises(SettingsError, match=message):
        call(torch.zeros(2))


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_margin_that_is_not_finite_is_refused_by_its_place(name, value):
    with pytest.raises(NumericalError, match="pair 2 of 3"):
        pair_loss(name, torch.tensor([0.0, 1.0, value]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_soft_label_is_the_mean_over_both_labels(name):
    m = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    right = torch.linspace(0, 1, 13, dtype=torch.float64)
    loss, found = smoothed_pair_loss(name, m, 0.0, right=right)
    wanted = right * pair_loss(name, m)[0] + (1 - right) * pair_loss(name, -m)[0]
    assert torch.allclose(loss, wanted, rtol=1e-12)
    (slope,) = torch.autograd.grad(loss.sum(), m)
    assert torch.allclose(found["weight"], -slope, atol=1e-9)


def test_smoothing_and_a_soft_label_are_two_chances_of_a_wrong_label():
    m, right = torch.tensor([0.7, -2.0]), torch.tensor([1.0, 0.6])
    smoothed = smoothed_pair_loss("bt", m, 0.1, right=right)[0]
    wrong = 0.9 * (1 - right) + 0.1 * right
    assert torch.allclose(smoothed, (1 - wrong) * bt(m)[0] + wrong * bt(-m)[0])
    sure = smoothed_pair_loss("aps", m, 0.0, right=torch.ones(2))[0]
    assert torch.allclose(sure, pair_loss("aps", m)[0])
