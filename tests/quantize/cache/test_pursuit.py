"""Orthogonal matching pursuit and dictionaries: closed forms, in float64."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from burnish.quantize.maths.dictionary import learn_dictionary, tangent_gradient
from burnish.quantize.maths.pursuit import combine, pursue


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """(40 vectors of 12 numbers, 30 unit atoms)."""
    generator = torch.Generator().manual_seed(0)
    vectors, atoms = (torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (40, 30))
    return vectors, torch.nn.functional.normalize(atoms, dim=1)


def test_as_many_atoms_as_numbers_reproduce_a_vector(problem):
    vectors, atoms = problem
    assert torch.allclose(combine(*pursue(vectors, atoms, 12), atoms), vectors, atol=1e-10)


def test_coefficients_are_least_squares_on_the_chosen_atoms(problem):
    vectors, atoms = problem
    chosen, coefficients = pursue(vectors, atoms, 5)
    for vector, places, found in zip(vectors, chosen, coefficients, strict=True):
        best = np.linalg.lstsq(atoms[places].T.numpy(), vector.numpy(), rcond=None)[0]
        assert np.allclose(found.numpy(), best, atol=1e-10)


def test_the_chosen_atoms_are_those_of_scikit_learn(problem):
    vectors, atoms = problem
    theirs = orthogonal_mp(atoms.T.numpy(), vectors.T.numpy(), n_nonzero_coefs=5).T
    chosen, coefficients = pursue(vectors, atoms, 5)
    ours = np.zeros_like(theirs)
    np.put_along_axis(ours, chosen.numpy(), coefficients.numpy(), axis=1)
    assert np.allclose(ours, theirs, atol=1e-10)


def test_more_atoms_extend_the_choice_and_never_raise_the_error(problem):
    vectors, atoms = problem
    longest, errors = pursue(vectors, atoms, 8)[0], [vectors.norm(dim=1)]
    for sparsity in range(1, 9):
        chosen, coefficients = pursue(vectors, atoms, sparsity)
        assert torch.equal(chosen, longest[:, :sparsity])
        errors.append((vectors - combine(chosen, coefficients, atoms)).norm(dim=1))
        assert (errors[-1] <= errors[-2] + 1e-12).all()


def test_under_an_orthonormal_basis_the_largest_coordinates_are_kept():
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64)).Q
    vectors = torch.randn(20, 16, generator=generator, dtype=torch.float64)
    chosen, coefficients = pursue(vectors, basis, 4)
    coordinates = vectors @ basis.T
    assert torch.equal(chosen, coordinates.abs().argsort(dim=1, descending=True)[:, :4])
    assert torch.allclose(coefficients, coordinates.gather(1, chosen))


def test_no_atom_is_added_where_the_error_is_small_enough(problem):
    vectors, atoms = problem
    chosen, coefficients = pursue(vectors, atoms, 12, tolerance=0.4)
    errors = (vectors - combine(chosen, coefficients, atoms)).norm(dim=1) / vectors.norm(dim=1)
    assert (errors <= 0.4).all()
    used = (coefficients != 0).sum(dim=1)
    assert used.unique().numel() > 1
    for vector, num in zip(vectors, used, strict=True):  # one atom fewer would not have been enough
        before = combine(*pursue(vector[None], atoms, int(num) - 1), atoms)
        assert (vector - before).norm() > 0.4 * vector.norm()


def test_a_vector_of_zeros_and_atoms_that_are_all_the_same_give_numbers():
    atoms = torch.ones(5, 4, dtype=torch.float64) / 2
    vectors = torch.stack([torch.zeros(4), torch.arange(4.0)]).double()
    coefficients = pursue(vectors, atoms, 3)[1]
    assert coefficients.isfinite().all()
    assert torch.equal(coefficients[0], torch.zeros(3, dtype=torch.float64))


def test_the_gradient_is_that_of_the_error_along_the_sphere(problem):
    vectors, atoms = problem
    chosen, coefficients = pursue(vectors, atoms, 3)
    free = atoms.clone().requires_grad_()
    (vectors - combine(chosen, coefficients, free)).square().sum(dim=1).mean().backward()
    assert free.grad is not None
    along = (free.grad * atoms).sum(dim=1, keepdim=True) * atoms
    found = tangent_gradient(vectors, atoms, 3)
    assert torch.allclose(found, free.grad - along, atol=1e-12)
    assert torch.allclose((found * atoms).sum(dim=1), torch.zeros(30, dtype=torch.float64), atol=1e-12)


def test_learning_finds_atoms_that_the_vectors_are_made_of():
    generator = torch.Generator().manual_seed(2)
    true = torch.nn.functional.normalize(torch.randn(12, 8, generator=generator), dim=1)
    places = torch.rand(1500, 12, generator=generator).argsort(dim=1)[:, :2]
    vectors = combine(places, torch.randn(1500, 2, generator=generator) + 0.5, true)

    def error(atoms: torch.Tensor) -> float:
        return float((vectors - combine(*pursue(vectors, atoms, 2), atoms)).square().sum() / vectors.square().sum())

    options = {"batch": 32, "lr": 0.01}
    start = learn_dictionary(vectors, 12, 2, torch.Generator().manual_seed(0), epochs=0, **options)
    learned = learn_dictionary(vectors, 12, 2, torch.Generator().manual_seed(0), epochs=6, **options)
    assert torch.allclose(learned.norm(dim=1), torch.ones(12))
    assert error(learned) < 0.5 * error(start)
