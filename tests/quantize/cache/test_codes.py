"""What is stored of a vector: bytes, errors, and that nothing else than the vector decides it."""

import pytest
import torch

from burnish.core.errors import SettingsError
from burnish.quantize.cache.codes import LayerFit, code_of, codes_of
from burnish.quantize.maths.pursuit import pursue
from burnish.quantize.maths.rotation import random_signs

EVERY = [
    "rotated:1",
    "rotated:2",
    "rotated:3",
    "rotated:4",
    "int2",
    "int3",
    "int4",
    "int8",
    "int4:16",
    "lexico:4",
    "lexico:8:packed",
]
BYTES = {
    "rotated:2": 18,
    "rotated:3": 26,
    "rotated:4": 34,
    "int2": 24,
    "int3": 28,
    "int4": 36,
    "lexico:8": 26,
    "lexico:10:packed": 25,
}
"""Of a vector of 64 numbers, with a dictionary of 1,024 atoms for lexico."""
BEST = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
"""Mean squared error of the best levels for a normal number."""


def fitted(heads: int = 2, atoms: int = 1024) -> LayerFit:
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.nn.functional.normalize(torch.randn(atoms, 64, generator=generator), dim=1)
    return LayerFit(torch.randn(heads, 1, 64, generator=generator), random_signs(64, generator), dictionary)


def vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 64, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_those_of_the_tensors(name):
    code, own = code_of(name), fitted()
    stored = code.encode(vectors(3, 2, 5), own)
    assert {part: tensor.nbytes // 30 for part, tensor in stored.items()} == code.parts(own)
    assert sum(tensor.nbytes for tensor in stored.values()) == 30 * BYTES[name]


@pytest.mark.parametrize("name", EVERY)
def test_a_vector_is_stored_as_it_is_alone_whatever_else_is_in_the_batch(name):
    code, own, many = code_of(name), fitted(), vectors(4, 2, 9)
    whole = code.encode(many, own)
    for text in range(4):
        for token in (0, 8):
            alone = code.encode(many[text : text + 1, :, token : token + 1], own)
            for part, tensor in alone.items():
                assert torch.equal(tensor, whole[part][text : text + 1, :, token : token + 1]), part


@pytest.mark.parametrize("bits", BEST)
def test_a_rotated_vector_has_the_error_of_the_best_levels_whatever_its_direction(bits):
    code, own = code_of(f"rotated:{bits}"), fitted()
    peaked = torch.zeros(1, 2, 2000, 64)
    places = torch.randint(64, (2, 2000, 3), generator=torch.Generator().manual_seed(3))
    peaked[0].scatter_(2, places, torch.randn(2, 2000, 3, generator=torch.Generator().manual_seed(4)))
    for given in (vectors(1, 2, 2000), peaked):
        exact = given + own.mean
        away = (code.decode(code.encode(exact, own), own) - exact).norm(dim=-1) / given.norm(dim=-1)
        assert float(away.square().mean()) < BEST[bits] * 1.6 if given is peaked else BEST[bits] * 1.02


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_vector_that_is_far_from_the_mean_is_not_measured_from_it(bits):
    """The first token of a text: with the mean taken off, its error would be a share of the mean's length."""
    code, own = code_of(f"rotated:{bits}"), fitted()
    small = vectors(1, 2, 500) * 0.003
    for exact in (small, small + own.mean, torch.cat([small, small + own.mean], dim=-2)):
        away = (code.decode(code.encode(exact, own), own) - exact).norm(dim=-1)
        error = away / small.norm(dim=-1).repeat(1, 1, exact.shape[2] // 500)
        assert float(error.mean()) < (1.05 * BEST[bits]) ** 0.5
    nothing = torch.zeros(1, 2, 1, 64)
    assert torch.equal(code.decode(code.encode(nothing, own), own), nothing)
    assert torch.allclose(code.decode(code.encode(nothing + own.mean, own), own), nothing + own.mean)


def test_the_scale_is_the_best_for_the_levels_that_were_chosen():
    code, own, exact = code_of("rotated:2"), fitted(), vectors(1, 2, 50)
    stored = code.encode(exact, own)
    errors = [
        (code.decode(stored | {"scale": stored["scale"] * factor}, own) - exact).norm() for factor in (0.98, 1.0, 1.02)
    ]
    assert errors[1] < min(errors[0], errors[2])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_number_between_least_and_largest_is_off_by_half_a_step_at_most(bits):
    code, own, exact = code_of(f"int{bits}"), fitted(), vectors(1, 2, 50)
    groups = exact.unflatten(-1, (-1, 32 if bits == 2 else 64))
    step = (groups.amax(-1) - groups.amin(-1)) / (2**bits - 1)
    away = (code.decode(code.encode(exact, own), own) - exact).unflatten(-1, (-1, groups.shape[-1])).abs().amax(-1)
    assert (away <= 0.5 * step * 1.02 + 0.01).all()  # scale and least number are float16


def test_a_group_that_is_all_the_same_comes_back():
    code, own = code_of("int4"), fitted()
    exact = torch.full((1, 2, 3, 64), 0.5)
    assert torch.equal(code.decode(code.encode(exact, own), own), exact)


@pytest.mark.parametrize("size", [1e-5, 1.0, 1e3])
def test_coefficients_fit_into_float8_whatever_their_size(size):
    code, own, exact = code_of("lexico:8"), fitted(), vectors(1, 2, 40) * size
    atoms, coefficients = code.sparse(code.encode(exact, own), own)
    assert coefficients.isfinite().all()
    true = pursue(exact.flatten(0, -2), own.dictionary, 8)
    assert torch.equal(atoms.flatten(0, -2), true[0])
    largest = true[1].abs().amax(dim=1, keepdim=True)
    assert ((coefficients.flatten(0, -2) - true[1]).abs() <= 0.0626 * true[1].abs() + 0.001 * largest).all()


@pytest.mark.parametrize("name", EVERY)
def test_what_float16_cannot_hold_is_cut_off_and_stays_a_number(name):
    code, own = code_of(name), fitted()
    assert code.decode(code.encode(vectors(1, 2, 4) * 1e7, own), own).isfinite().all()


def test_attention_from_sparse_codes_is_that_from_decoded_vectors():
    code, own = code_of("lexico:6"), fitted()
    stored = code.encode(vectors(1, 2, 30), own)
    query = torch.randn(1, 2, 3, 64, generator=torch.Generator().manual_seed(5))
    atoms, coefficients = code.sparse(stored, own)
    along = query @ own.dictionary.T  # (q D), once for all tokens
    places = atoms[:, :, None].expand(-1, -1, 3, -1, -1)
    scores = (along[:, :, :, None].expand(-1, -1, -1, 30, -1).gather(4, places) * coefficients[:, :, None]).sum(-1)
    assert torch.allclose(scores, query @ code.decode(stored, own).mT, atol=1e-4)


@pytest.mark.parametrize("name", ["rotated", "rotated:7", "int1", "lexico:0", "lexico", "fp8", ""])
def test_an_unknown_name_is_refused_with_what_there_is(name):
    with pytest.raises(SettingsError, match="rotated:BITS"):
        code_of(name)


def test_a_code_that_occurs_twice_is_refused():
    with pytest.raises(SettingsError, match="int4 occurs twice"):
        codes_of("int4,rotated:2, int4")


def test_a_code_without_its_dictionary_and_one_of_more_atoms_than_there_are_are_refused():
    own = fitted(atoms=4)
    with pytest.raises(SettingsError, match="more atoms than 4"):
        code_of("lexico:5").parts(own)
    with pytest.raises(SettingsError, match="none were learned"):
        code_of("lexico:2").parts(LayerFit(own.mean, own.signs))
    with pytest.raises(SettingsError, match="groups of 48"):
        code_of("int4:48").parts(own)
