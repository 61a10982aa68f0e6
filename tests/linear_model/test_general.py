"""`parametric_simplex`: a program that the user writes down, against HiGHS."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linprog

from burnish.linear_model import parametric_simplex


def program(seed: int, *, moving: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, columns = 6, 9
    own = np.abs(rng.normal(size=(rows, columns)))
    b = rng.normal(size=rows) if moving != "costs" else np.abs(rng.normal(size=rows))
    c = rng.normal(size=columns) if moving != "bounds" else -np.abs(rng.normal(size=columns))
    zeros = np.zeros(rows)
    return {
        "A": np.hstack([own, np.eye(rows)]),
        "b": b,
        "bbar": np.ones(rows) if moving != "costs" else zeros,
        "c": np.concatenate([c, zeros]),
        "cbar": np.concatenate([-np.ones(columns) if moving != "bounds" else 0 * c, zeros]),
    }


@pytest.mark.parametrize("moving", ["bounds", "costs", "both"])
@pytest.mark.parametrize("seed", range(8))
def test_every_breakpoint_is_what_highs_finds(seed: int, moving: str) -> None:
    parts = program(seed, moving=moving)
    path = parametric_simplex(**parts)
    assert path.stopped_by in ("complete", "infeasible", "unbounded")
    assert path.gaps.max() <= 1e-8
    for number, lmbda in enumerate(path.lambdas):
        cost, bound = parts["c"] + lmbda * parts["cbar"], parts["b"] + lmbda * parts["bbar"]
        expected = linprog(-cost, A_eq=parts["A"], b_eq=bound, bounds=(0, None), method="highs")
        if expected.status != 0:
            assert number == len(path.lambdas) - 1
            continue
        assert path.values[number] == pytest.approx(-expected.fun, rel=1e-8, abs=1e-8)
        x = path.x[[number]].toarray()[0]
        np.testing.assert_allclose(parts["A"] @ x, bound, atol=1e-8)
        assert x.min() >= 0
        assert path.duals[number] @ bound == pytest.approx(path.values[number], rel=1e-8, abs=1e-8)


def test_a_basis_other_than_the_slacks_and_a_sparse_matrix() -> None:
    parts = program(0, moving="bounds")
    mixing = np.random.default_rng(1).normal(size=(6, 6)) + 3 * np.eye(6)
    mixed = parts | {key: mixing @ parts[key] for key in ("A", "b", "bbar")}
    expected = parametric_simplex(**parts)
    given = parametric_simplex(**mixed | {"A": sp.csr_array(mixed["A"])}, basis=range(9, 15))
    np.testing.assert_allclose(given.lambdas, expected.lambdas, rtol=1e-9)
    np.testing.assert_allclose(given.values, expected.values, rtol=1e-9)
    np.testing.assert_allclose(given.duals @ mixing, expected.duals, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"b": np.ones(5)}, "b has 5 entries, but A asks for 6"),
        ({"c": np.full(15, np.nan)}, "c holds values that are not finite"),
        ({"A": np.ones(3)}, "A has 1 dimensions"),
        ({"A": np.ones((6, 15))}, "row 0 of A has no slack column"),
        ({"bbar": -np.ones(6)}, "not optimal for large lambda"),
        ({"basis": [0, 0, 1, 2, 3, 4]}, "basis must name 6 different columns"),
        ({"lambda_min": -1.0}, "lambda_min is -1.0"),
    ],
)
def test_bad_input_gets_a_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parametric_simplex(**program(0, moving="bounds") | changes)  # type: ignore[arg-type]
