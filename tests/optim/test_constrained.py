"""Stoc-iALM: exact properties of its estimates, optima of SLSQP, restarts and refusals."""

import itertools
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.datasets import load_breast_cancer

from burnish.core.errors import CheckpointError, DataError, NumericalError, SettingsError
from burnish.optim.constrained import (
    Constraint,
    DemographicParity,
    LossBound,
    NeymanPearson,
    Objective,
    Sampled,
    constrained_minimize,
)
from burnish.optim.constrained.inner import _Batches
from burnish.optim.constrained.lagrangian import Lagrangian
from burnish.optim.maths.augmented import augmented_terms, bounded_step, force, moved_multipliers

EXACT = {"rtol": 0, "atol": 1e-12}


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


# -- the augmented Lagrangian ----------------------------------------------------------------------------------------


def test_the_force_is_the_derivative_of_the_augmented_terms():
    violation = numbers(-2.0, -0.1, 0.3, 0.4).requires_grad_()
    multipliers, inequality = numbers(1.0, 1.0, 0.0, -2.0), torch.tensor([True, True, True, False])
    (slope,) = torch.autograd.grad(augmented_terms(violation, multipliers, 1.5, inequality), violation)
    torch.testing.assert_close(slope, force(violation.detach(), multipliers, 1.5, inequality), **EXACT)


def test_the_best_slack_makes_the_equality_the_term_of_the_inequality():
    multipliers, inequality = numbers(0.7), torch.tensor([True])
    for violation in (-1.5, -0.2, 0.4):
        slacks = torch.linspace(0, 3, 300_001, dtype=torch.float64)
        terms = 0.7 * (violation + slacks) + (violation + slacks) ** 2  # beta = 2
        expected = float(augmented_terms(numbers(violation), multipliers, 2.0, inequality))
        # y s is part of the term with slack; its minimum is that of the formula, up to the grid.
        assert float(terms.min()) == pytest.approx(expected, abs=1e-9)


def test_bounded_steps_keep_the_multipliers_bounded_whatever_the_constraint_does():
    moved = sum(bounded_step(number, 1e6, 1.0) * 1e6 for number in range(100_000))
    bound = math.log(2) ** 2 * sum(1 / ((k + 1) * math.log(k + 2) ** 2) for k in range(100_000))
    assert moved == pytest.approx(bound, rel=1e-9)
    assert bound < 1.7  # the sum converges, log(2)^2 (1/log(2)^2 + ...), and its rest beyond is 0.05


def test_multipliers_of_inequalities_stay_at_or_above_zero():
    moved = moved_multipliers(numbers(-3.0, -3.0), numbers(1.0, 1.0), 1.0, torch.tensor([True, False]))
    assert moved.tolist() == [0.0, -2.0]


# -- estimates on batches --------------------------------------------------------------------------------------------


class Scripted(Sampled):
    """Gives the rows that it is told to, one a draw."""

    def __init__(self, *tensors):
        super().__init__(*tensors, batch_size=1)
        self.rows = []

    def draw(self, generator):
        row = self.rows.pop(0)
        return tuple(tensor[row : row + 1] for tensor in self.tensors)


def two_points(slack):
    """x = 0.5, c(x; z) = z x - 1 with z = 1 or 4: J = z, and E C = 0.25."""
    x = numbers(0.5).requires_grad_()
    data = Scripted(numbers(1.0, 4.0))
    sense = "==" if slack is None else "<="
    constraint = Constraint(lambda z: (z * x).mean() - 1, sense=sense, data=data)
    problem = Lagrangian(Objective(lambda: (x * x).sum()), [constraint], [x], {})
    return x, data, problem


def estimates(draws, slack=None):
    x, data, problem = two_points(slack)
    found = []
    for rows in draws:
        data.rows = list(rows)
        x.grad = None
        _Batches(problem, "stochastic", torch.Generator()).gradients(numbers(0.3), 2.0, slack)
        found.append((float(x.grad), 0.0 if slack is None else float(slack.grad)))
    return np.mean(found, axis=0)


def test_the_gradient_on_independent_batches_is_unbiased():
    mean, _ = estimates(itertools.product((0, 1), (0, 1)))
    assert mean == pytest.approx(2 * 0.5 + 2.5 * (0.3 + 2.0 * 0.25), rel=1e-14)


def test_on_one_batch_the_bias_is_beta_times_the_covariance():
    mean, _ = estimates([(0, 0), (1, 1)])
    covariance = np.cov([1.0, 4.0], [1 * 0.5 - 1, 4 * 0.5 - 1], bias=True)[0, 1]
    assert mean - (2 * 0.5 + 2.5 * (0.3 + 2.0 * 0.25)) == pytest.approx(2.0 * covariance, rel=1e-14)


def test_with_a_slack_the_gradients_of_an_inequality_are_unbiased_too():
    mean, of_slack = estimates(itertools.product((0, 1), (0, 1)), slack=numbers(0.2))
    pull = 0.3 + 2.0 * (0.25 + 0.2)
    assert (mean, of_slack) == pytest.approx((2 * 0.5 + 2.5 * pull, pull), rel=1e-14)


# -- optima ----------------------------------------------------------------------------------------------------------


def test_a_quadratic_under_an_equality_reaches_its_closed_form():
    """min ||x - a||^2 s.t. u x = 1, ||u|| = 1: x = a + (1 - u a) u and y = 2 (u a - 1)."""
    target, direction = numbers(2.0, -1.0, 0.5), numbers(2.0, 1.0, 2.0) / 3
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    result = constrained_minimize(
        lambda: (x - target).square().sum(),
        [Constraint(lambda: direction @ x - 1, sense="==")],
        [x],
        tolerance=1e-8,
    )
    assert result.status == "converged"
    gap = float(direction @ target) - 1
    torch.testing.assert_close(x.detach(), target - gap * direction, rtol=0, atol=1e-7)
    assert float(result.multipliers) == pytest.approx(2 * gap, abs=1e-6)


def test_an_inactive_bound_has_no_multiplier():
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    result = constrained_minimize(
        lambda: (x - 1).square().sum(), [Constraint(lambda: x.sum() - 5)], [x], tolerance=1e-6
    )
    assert result.status == "converged"
    assert result.multipliers.tolist() == [0.0]
    torch.testing.assert_close(x.detach(), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("multiplier_step", ["classical", "bounded"])
@pytest.mark.slow
def test_both_steps_of_the_multipliers_converge(multiplier_step):
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    result = constrained_minimize(
        lambda: (x - 1).square().sum(),
        [Constraint(lambda: x.sum() - 1)],
        [x],
        multiplier_step=multiplier_step,
        tolerance=1e-4,
    )
    assert result.status == "converged"
    assert float(result.multipliers) == pytest.approx(1.0, abs=1e-2)
    assert x.tolist() == pytest.approx([0.5, 0.5], abs=1e-3)


def softplus(values):
    return np.logaddexp(0, values)


def optimum(value, gradient, bounds, size, radius):
    """(objective, multipliers) of SLSQP for min value s.t. every bound <= 0 and ||w|| <= radius."""
    constraints = [{"type": "ineq", "fun": lambda w, b=b: -b[0](w), "jac": lambda w, b=b: -b[1](w)} for b in bounds] + [
        {"type": "ineq", "fun": lambda w: radius**2 - w @ w, "jac": lambda w: -2 * w}
    ]
    found = minimize(
        value,
        np.zeros(size),
        jac=gradient,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert found.success
    active = [b[1](found.x) for b in bounds if b[0](found.x) > -1e-6] + [2 * found.x]
    return found.fun, np.linalg.lstsq(np.stack(active, 1), -gradient(found.x), rcond=None)[0][:-1]


def breast_cancer():
    features, malignant = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    return np.c_[features, np.ones(len(features))], (malignant == 0).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"batch_size": 2, "restart": 150}, {"batch_size": None, "restart": 10}], ids=["stochastic", "whole"]
)
def test_neyman_pearson_on_breast_cancer_reaches_the_optimum_of_slsqp(options):
    rows, labels = breast_cancer()
    positive, negative = rows[labels > 0], rows[labels == 0]
    best, (multiplier,) = optimum(
        lambda w: softplus(-positive @ w).mean(),
        lambda w: -positive.T @ expit(-positive @ w) / len(positive),
        [
            (
                lambda w: softplus(negative @ w).mean() - 0.1,
                lambda w: negative.T @ expit(negative @ w) / len(negative),
            )
        ],
        rows.shape[1],
        2.0,
    )
    w = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
    options = dict(options)
    problem = NeymanPearson(0.1).problem(
        lambda x: x @ w, torch.tensor(rows), torch.tensor(labels), batch_size=options.pop("batch_size")
    )
    result = constrained_minimize(
        problem.objective, problem.constraints, [w], proximal={"proximal": "ball", "radius": 2.0}, **options
    )
    last = result.rows[-1]
    assert result.status == "converged"
    assert last["objective"] == pytest.approx(best, rel=0.01)
    assert last["violation"] <= 1e-3
    assert float(result.multipliers) == pytest.approx(multiplier, rel=0.05)


def unfair(size=400):
    """Two groups whose features differ, so that a good score differs too."""
    draws = np.random.default_rng(0)
    groups = draws.integers(0, 2, size)
    rows = draws.normal(size=(size, 4)) + 0.8 * groups[:, None] * np.array([1.0, 0.5, 0, 0])
    labels = (rows @ np.array([1.0, -0.5, 1.0, 0.0]) + draws.normal(size=size) > 0.3) * 2.0 - 1
    return np.c_[rows, np.ones(size)], labels, groups


@pytest.mark.slow
def test_demographic_parity_reaches_the_optimum_of_slsqp():
    rows, labels, groups = unfair()
    difference = rows[groups == 1].mean(0) - rows[groups == 0].mean(0)
    signed = labels[:, None] * rows
    best, multipliers = optimum(
        lambda w: softplus(-signed @ w).mean(),
        lambda w: -signed.T @ expit(-signed @ w) / len(signed),
        [
            (lambda w: difference @ w - 0.2, lambda w: difference),
            (lambda w: -difference @ w - 0.2, lambda w: -difference),
        ],
        rows.shape[1],
        5.0,
    )
    w = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
    score = lambda x: x @ w  # noqa: E731 - what users write
    constraint = DemographicParity(0.2).constraint(score, torch.tensor(rows), torch.tensor(groups), batch_size=4)
    objective = Objective(
        lambda x, y: torch.nn.functional.softplus(-y * score(x)).mean(),
        Sampled(torch.tensor(rows), torch.tensor(labels), batch_size=4),
    )
    result = constrained_minimize(objective, [constraint], [w], proximal={"proximal": "ball", "radius": 5.0})
    last = result.rows[-1]
    assert result.status == "converged"
    assert last["objective"] == pytest.approx(best, rel=0.01)
    assert last["violation"] <= 1e-3
    assert result.multipliers.tolist() == pytest.approx([multipliers[0], 0.0], rel=0.05, abs=1e-6)


def test_a_problem_without_a_feasible_point_is_called_infeasible():
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    bounds = [Constraint(lambda: x.sum() - 1), Constraint(lambda: 2 - x.sum())]
    result = constrained_minimize(lambda: x.square().sum(), bounds, [x])
    assert result.status == "infeasible"
    assert result.rows[-1]["violation"] == pytest.approx(0.5, abs=0.05)


def test_a_level_that_the_domain_cannot_reach_is_called_infeasible():
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    result = constrained_minimize(
        lambda: (x - 1).square().sum(),
        [Constraint(lambda: 3 - x.sum())],
        [x],
        proximal={"proximal": "ball", "radius": 1.0},
    )
    assert result.status == "infeasible"
    assert x.sum().item() == pytest.approx(2**0.5, abs=0.05)


# -- going on --------------------------------------------------------------------------------------------------------


def noisy(seed=0):
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    draws = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    objective = Objective(lambda rows: (x - 1 - rows).square().sum(1).mean(), Sampled(draws, batch_size=4))
    constraint = LossBound(Sampled(draws, batch_size=4), level=1.0).constraint(lambda rows: (x + rows).sum(1).mean())
    return x, objective, constraint


def test_a_stopped_run_goes_on_to_the_same_result(tmp_path):
    x, objective, constraint = noisy()
    whole = constrained_minimize(objective, [constraint], [x], restart=20, tolerance=1e-5)
    assert len(whole.rows) > 3
    y, objective, constraint = noisy()
    constrained_minimize(objective, [constraint], [y], restart=20, tolerance=1e-5, rounds=2, work_dir=tmp_path)
    z, objective, constraint = noisy()
    rest = constrained_minimize(objective, [constraint], [z], restart=20, tolerance=1e-5, work_dir=tmp_path)
    assert torch.equal(x, z)
    assert rest.rows == whole.rows


def test_the_state_of_another_problem_is_refused(tmp_path):
    x, objective, constraint = noisy()
    constrained_minimize(objective, [constraint], [x], rounds=1, work_dir=tmp_path)
    x, objective, constraint = noisy(seed=1)
    with pytest.raises(CheckpointError, match="data: not the same"):
        constrained_minimize(objective, [constraint], [x], rounds=1, work_dir=tmp_path)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_labels_of_one_class_are_refused():
    with pytest.raises(DataError, match="no negatives among 4 samples"):
        NeymanPearson(0.1).problem(lambda x: x.sum(1), torch.ones(4, 2), torch.ones(4))


@pytest.mark.parametrize("groups, named", [(None, "needs the group"), (torch.ones(4), "in one group")])
def test_data_without_two_groups_is_refused(groups, named):
    with pytest.raises(DataError, match=named):
        DemographicParity(0.1).constraint(lambda x: x.sum(1), torch.ones(4, 2), groups)


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: NeymanPearson(0.0), "level is 0.0"),
        (lambda: DemographicParity(-0.1), "kappa is -0.1"),
        (lambda: LossBound(Sampled(torch.ones(2)), math.nan), "level is nan"),
        (lambda: Constraint(lambda: torch.ones(1), sense=">="), "sense of constraint is '>='"),
        (lambda: Sampled(torch.ones(2), batch_size=0), "batch_size is 0"),
    ],
)
def test_levels_and_senses_that_mean_nothing_are_refused(make, named):
    with pytest.raises(SettingsError, match=named):
        make()


def test_empty_and_uneven_data_is_refused():
    with pytest.raises(DataError, match="empty"):
        Sampled(torch.ones(0, 2))
    with pytest.raises(DataError, match="2 and 3 rows"):
        Sampled(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize(
    "options, named",
    [
        ({"lr": -1.0}, "lr is -1"),
        ({"growth": 1.0}, "growth is 1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"estimator": "both"}, "estimator is 'both'"),
        ({"rate": 1.0}, "no setting 'rate'"),
        ({"proximal": {"proximal": "ball", "radius": -1.0}}, "radius is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, named):
    x = torch.zeros(1, requires_grad=True)
    with pytest.raises(SettingsError, match=named):
        constrained_minimize(lambda: (x * x).sum(), [Constraint(lambda: x.sum() + 1)], [x], **options)


def test_a_problem_without_constraints_or_parameters_is_refused():
    x = torch.zeros(1, requires_grad=True)
    with pytest.raises(SettingsError, match="no constraints"):
        constrained_minimize(lambda: (x * x).sum(), [], [x])
    with pytest.raises(SettingsError, match="no parameters"):
        constrained_minimize(lambda: (x * x).sum(), [Constraint(lambda: x.sum())], [])


def test_values_that_are_not_finite_are_named():
    x = torch.zeros(1, requires_grad=True)
    bad = Constraint(lambda: x.sum() + math.nan, name="loss of the old domain")
    with pytest.raises(NumericalError, match="loss of the old domain"):
        constrained_minimize(lambda: (x * x).sum(), [bad], [x])


@pytest.mark.slow
def test_the_example_meets_its_bound(capsys):
    example = Path(__file__).resolve().parents[2] / "examples" / "false_alarms.py"
    result = runpy.run_path(str(example))["main"]()
    assert result.status == "converged"
    assert "false alarms of 357" in capsys.readouterr().out
