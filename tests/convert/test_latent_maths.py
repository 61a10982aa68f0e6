"""The closed forms of latent attention: pairs that turn, the shared latent, what attention weighs, ranks."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.convert.maths.latent import (
    attention_sums,
    balanced_cost,
    factorise,
    key_cost,
    near_constant,
    output_error,
    value_cost,
)
from burnish.convert.maths.ranks import greedy_ranks, loss, paper_ranks
from burnish.convert.maths.refit import RegressionSums, chosen, refitted
from burnish.convert.maths.rotary import (
    Directions,
    as_channels,
    as_pairs,
    assign,
    directions,
    folded,
    grid,
    interleaved,
    kept_everywhere,
    lost_share,
    mean_rotation,
    pair_moment,
    standing_keys,
    turned_queries,
)

HEADS, GROUPS, HALF, WIDTH, TOKENS = 6, 3, 4, 10, 25
FREQUENCIES = 100.0 ** (-torch.arange(HALF, dtype=torch.float64) / HALF)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def near(found, wanted, tolerance=1e-10):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.complex128)


def positive(size: int, seed: int) -> torch.Tensor:
    factor = drawn(size, size, seed=seed)
    return factor @ factor.mT


# -- pairs that turn ---------------------------------------------------------------------------------------------------

QUERIES = as_pairs(drawn(HEADS * 2 * HALF, WIDTH, seed=1), HEADS)
KEYS = as_pairs(drawn(GROUPS * 2 * HALF, WIDTH, seed=2), GROUPS)
INPUTS = drawn(TOKENS, WIDTH, seed=3)
MOMENT = pair_moment(as_channels(KEYS, GROUPS) @ INPUTS.mT @ INPUTS @ as_channels(KEYS, GROUPS).mT / TOKENS, GROUPS)
ENERGY = (QUERIES @ INPUTS.mT.to(torch.complex128)).abs().square().mean(1).view(GROUPS, -1, HALF).sum(1).flatten()


def turned(pairs: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Rows of pairs at every token, each turned by its position: (..., pairs, tokens)."""
    rows = pairs @ INPUTS.mT.to(torch.complex128)
    return rows * torch.exp(1j * frequencies[:, None] * torch.arange(TOKENS))


def scores(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return (queries.mH @ keys).real


def source_scores() -> torch.Tensor:
    """(heads, queries, keys)."""
    queries = turned(QUERIES.view(HEADS, HALF, WIDTH), FREQUENCIES)
    keys = turned(KEYS.view(GROUPS, HALF, WIDTH), FREQUENCIES).repeat_interleave(HEADS // GROUPS, 0)
    return scores(queries, keys)


def latent_scores(kept: Directions, slots: torch.Tensor, rotations: torch.Tensor, standing: torch.Tensor):
    """As latent attention computes them: slots that turn and are shared by all heads, and the rest, which does not."""
    by_head = QUERIES.view(HEADS, HALF, WIDTH)
    queries, keys = turned(turned_queries(by_head, kept, rotations), slots), turned(kept.down @ KEYS, slots)
    rest = standing_keys(kept, GROUPS) @ as_channels(KEYS, GROUPS) @ INPUTS.mT
    still = as_channels((by_head * standing).flatten(0, 1), HEADS).view(HEADS, 2 * HALF, WIDTH) @ INPUTS.mT
    rest = rest.view(GROUPS, 2 * HALF, TOKENS).repeat_interleave(HEADS // GROUPS, 0)
    return scores(queries, keys) + still.mT @ rest


def test_pairs_and_channels_are_each_others_inverse():
    rows = drawn(GROUPS * 2 * HALF, WIDTH)
    near(as_channels(as_pairs(rows, GROUPS), GROUPS), rows, 0)


def test_the_moment_of_pairs_is_that_of_complex_keys():
    keys = KEYS @ INPUTS.mT.to(torch.complex128)
    near(MOMENT, keys @ keys.mH / TOKENS)


def test_interleaved_rows_alternate_between_the_halves():
    rows = interleaved(KEYS)
    near(rows[0::2], KEYS.real, 0)
    near(rows[1::2], KEYS.imag, 0)


@pytest.mark.parametrize("weights", [ENERGY, torch.ones_like(ENERGY)], ids=["weighed", "plain"])
@pytest.mark.parametrize("moment", [MOMENT, MOMENT.real.to(torch.complex128)], ids=["complex", "real"])
def test_all_directions_are_the_source(weights, moment):
    found = directions(moment, weights, HALF)
    near(found.down @ found.up, torch.eye(GROUPS * HALF, dtype=torch.complex128))
    slots = FREQUENCIES[found.frequency]
    exact = latent_scores(found, slots, ones(HEADS, HALF, len(slots)), ones(HEADS, HALF, 1))
    near(exact, source_scores())


def test_one_key_head_is_the_source_with_as_many_slots_as_frequencies():
    keys, energy = MOMENT[:HALF, :HALF], ENERGY[:HALF]
    kept, slots = folded(keys, energy, HALF, num_slots=HALF, fold=1)
    assert slots.tolist() == list(range(HALF))
    near(kept.up @ kept.down, torch.eye(HALF, dtype=torch.complex128))
    near(standing_keys(kept, 1), torch.zeros(2 * HALF, 2 * HALF, dtype=torch.float64))


def test_what_does_not_turn_beside_the_slots_is_exact_at_distance_zero():
    kept = directions(MOMENT, ENERGY, HALF).take(torch.tensor([0, 3, 4]))
    found = latent_scores(kept, FREQUENCIES[kept.frequency], ones(HEADS, HALF, 3), ones(HEADS, HALF, 1))
    near(found.diagonal(dim1=1, dim2=2), source_scores().diagonal(dim1=1, dim2=2))


def test_directions_hold_the_energy_of_queries_times_keys_and_the_strongest_is_first():
    found = directions(MOMENT, ENERGY, HALF)
    kept = found.down @ MOMENT @ found.down.mH
    near(kept.diagonal().real, found.energy)
    assert all(found.energy[n * GROUPS] >= found.energy[n * GROUPS + 1] for n in range(HALF))
    near(found.energy.sum(), (ENERGY * MOMENT.diagonal().real).sum())


def test_complex_directions_hold_at_least_as_much_as_real_ones():
    first = torch.arange(HALF) * GROUPS
    with_phase = directions(MOMENT, ENERGY, HALF).energy[first]
    without = directions(MOMENT.real.to(torch.complex128), ENERGY, HALF).energy[first]
    assert (with_phase >= without - 1e-12).all()
    assert with_phase.sum() > 1.001 * without.sum()


def test_freqfold_with_one_frequency_is_the_first_direction_of_each():
    kept, slots = folded(MOMENT, ENERGY, HALF, num_slots=HALF, fold=1)
    first = directions(MOMENT, ENERGY, HALF).take(torch.arange(HALF) * GROUPS)
    near(kept.up @ kept.down, first.up @ first.down)
    assert slots.tolist() == [0, 1, 2, 3]


def test_freqfold_mixes_neighbours_and_keeps_more_energy():
    one, _ = folded(MOMENT, ENERGY, HALF, num_slots=2, fold=2)
    near(one.down @ one.up, torch.eye(2, dtype=torch.complex128))
    own = (one.up.view(GROUPS, HALF, 2).abs() > 1e-12).any(0)
    assert own.tolist() == [[True, False], [True, False], [False, True], [False, True]]
    best = directions(MOMENT, ENERGY, HALF).energy.view(2, -1).amax(1)
    assert (one.energy >= best - 1e-12).all()


# -- rotations ---------------------------------------------------------------------------------------------------------

DISTANCES = torch.tensor([5.0, 3.0, 2.0, 0.5, 0.5, 0.1], dtype=torch.float64)


def test_the_mean_rotation_is_the_best_constant():
    shares = DISTANCES / DISTANCES.sum()
    exact = torch.exp(1j * FREQUENCIES[1] * torch.arange(6))
    best = mean_rotation(DISTANCES, FREQUENCIES[1:2])[0]

    def error(constant):
        return float((shares * (exact - constant).abs().square()).sum())

    for change in (0.01, -0.01, 0.01j, -0.01j):
        assert error(best) < error(best + change)
    near(lost_share(DISTANCES, FREQUENCIES[1:2], torch.zeros(1, dtype=torch.float64))[0, 0].item(), error(best))


def test_nothing_is_lost_in_a_slot_of_the_own_frequency_or_at_one_distance():
    near(lost_share(DISTANCES, FREQUENCIES, FREQUENCIES).diagonal(), torch.zeros(HALF, dtype=torch.float64))
    single = torch.tensor([0, 0, 1.0], dtype=torch.float64)
    near(lost_share(single, FREQUENCIES, torch.zeros(1, dtype=torch.float64)), torch.zeros(HALF, 1).double())


def test_each_head_has_its_own_mean():
    both = torch.stack([DISTANCES, DISTANCES.flip(0)])
    found = mean_rotation(both, FREQUENCIES[:, None] - FREQUENCIES)
    assert found.shape == (2, HALF, HALF)
    near(found[1], mean_rotation(DISTANCES.flip(0), FREQUENCIES[:, None] - FREQUENCIES))


# -- slots -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_slots", [1, 3, 5])
def test_the_common_list_is_the_best_of_all_lists(num_slots):
    gains = drawn(2, 3, 2).abs()
    ordered = gains.sort(-1, descending=True).values.sum(0)

    def worth(numbers):
        return sum(float(ordered[n, : numbers.count(n)].sum()) for n in set(numbers))

    every = [c for c in itertools.combinations_with_replacement(range(3), num_slots) if max(map(c.count, c)) <= 2]
    found = tuple(kept_everywhere(gains, num_slots).tolist())
    assert worth(found) == pytest.approx(max(map(worth, every)))


def test_the_assignment_is_the_best_of_all_assignments():
    found = directions(MOMENT, ENERGY, HALF).take(torch.tensor([0, 1, 4, 6, 9]))
    slots = grid(30.0, 3)
    kept, lost = assign(found, FREQUENCIES, slots, DISTANCES)
    standing = lost_share(DISTANCES, FREQUENCIES, torch.zeros(1, dtype=torch.float64))[found.frequency, 0]
    turning = lost_share(DISTANCES, FREQUENCIES, slots)[found.frequency]
    every = []
    for picked in itertools.permutations(range(5), 3):
        rest = [n for n in range(5) if n not in picked]
        every.append(
            sum(float(found.energy[n] * turning[n, slot]) for slot, n in enumerate(picked))
            + float((found.energy * standing)[rest].sum())
        )
    assert float(lost) == pytest.approx(min(every), rel=1e-12)
    own = sum(
        float(energy * lost_share(DISTANCES, FREQUENCIES[n : n + 1], slots[j : j + 1]))
        for j, (energy, n) in enumerate(zip(kept.energy, kept.frequency, strict=True))
    )
    assert own < float(lost)


def test_exact_slots_for_the_strongest_lose_what_stands_of_the_others():
    found = directions(MOMENT, ENERGY, HALF)
    numbers = kept_everywhere(found.energy.view(1, HALF, GROUPS), 5)
    kept, lost = assign(
        found, FREQUENCIES, FREQUENCIES[numbers], torch.cat([torch.zeros(50), torch.ones(200)]).double()
    )
    assert sorted(kept.frequency.tolist()) == numbers.tolist()
    assert lost < found.energy.sum() - kept.energy.sum()


# -- the latent --------------------------------------------------------------------------------------------------------

STACKED = drawn(8, WIDTH, seed=4)
SECOND = INPUTS.mT @ INPUTS / TOKENS
COST = positive(8, 5)


def product(factors, rows=STACKED):
    return factors.up @ (factors.down @ rows)


@pytest.mark.parametrize("rank", [0, 1, 3, 7])
def test_the_error_is_the_tail_of_the_spectrum(rank):
    found = factorise(STACKED @ SECOND @ STACKED.mT, COST, rank)
    change = STACKED - product(found)
    error = torch.trace(COST @ change @ SECOND @ change.mT)
    assert float(error) == pytest.approx(float(found.spectrum[rank:].sum()), rel=1e-10)
    near(output_error(found.up @ found.down, STACKED @ SECOND @ STACKED.mT, COST), error)


def test_it_is_the_truncated_svd_of_the_weighted_matrix():
    values, vectors = torch.linalg.eigh(SECOND)
    root, inverse = vectors * values.sqrt() @ vectors.mT, vectors * values.rsqrt() @ vectors.mT
    outer, unweigh = torch.linalg.cholesky(COST).mH, torch.linalg.inv(torch.linalg.cholesky(COST).mH)
    left, sizes, right = torch.linalg.svd(outer @ STACKED @ root)
    best = unweigh @ (left[:, :3] * sizes[:3] @ right[:3]) @ inverse
    near(product(factorise(STACKED @ SECOND @ STACKED.mT, COST, 3)), best, 1e-9)


def test_without_a_cost_it_is_the_principal_components_of_the_outputs():
    """TransMLA without its balance, and CARE."""
    outputs = INPUTS @ STACKED.mT
    _, _, right = torch.linalg.svd(outputs, full_matrices=False)
    found = factorise(outputs.mT @ outputs / TOKENS, torch.eye(8, dtype=torch.float64), 3)
    near(product(found), right[:3].mT @ right[:3] @ STACKED)


def test_the_balance_gives_keys_and_values_the_same_energy():
    moment = STACKED @ SECOND @ STACKED.mT
    root = balanced_cost(moment, 5).sqrt()
    scaled = (root @ moment @ root).diagonal()
    assert float(scaled[:5].sum()) == pytest.approx(1)
    assert float(scaled[5:].sum()) == pytest.approx(1)


def test_full_rank_is_exact_even_where_an_error_costs_nothing():
    free = torch.zeros(8, 8, dtype=torch.float64)
    free[:4, :4] = positive(4, 6)
    near(product(factorise(STACKED @ SECOND @ STACKED.mT, free, 8)), STACKED, 1e-8)


def test_the_rows_of_the_latent_are_uncorrelated():
    found = factorise(STACKED @ SECOND @ STACKED.mT, COST, 4)
    rows = found.down @ STACKED
    near(rows @ SECOND @ rows.mT, found.spectrum[:4].diag(), 1e-9)


# -- what attention weighs ---------------------------------------------------------------------------------------------

Q, K, V = (drawn(1, 4, 7, 6, seed=seed) for seed in (7, 8, 9))
OUT = drawn(4, 5, 6, seed=10)


ZERO = torch.zeros((), dtype=torch.float64)


def attend(score_change: torch.Tensor = ZERO, value_change: torch.Tensor = ZERO) -> torch.Tensor:
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    probabilities = (Q[0] @ K[0].mT / 6**0.5 + score_change).masked_fill(future, -torch.inf).softmax(-1)
    return probabilities @ (V[0] + value_change) @ OUT.mT


def test_leverage_is_what_a_change_of_one_score_does_to_the_output():
    sums = attention_sums(Q, K, V, OUT)
    found = torch.zeros(4, dtype=torch.float64)
    for query, key in itertools.product(range(7), range(7)):
        change = torch.zeros(7, 7, dtype=torch.float64)
        change[query, key] = 1
        moved = torch.func.jvp(attend, (torch.zeros(7, 7).double(),), (change,))[1]
        found += moved.square().sum((1, 2))
    near(sums.leverage, found, 1e-9)


def test_squares_and_seen_are_what_a_change_of_one_value_does():
    sums, change = attention_sums(Q, K, V, OUT), drawn(6, seed=11)
    size = (OUT @ change).square().sum(1)
    by_token = torch.zeros(7, dtype=torch.float64)
    for token in range(7):
        at = torch.zeros(7, 6, dtype=torch.float64)
        at[token] = change
        moved = attend(value_change=at) - attend()
        by_token[token] = (moved.square().sum((1, 2)) / size).sum()
    near(sums.seen[0], by_token)
    near(sums.squares.sum(), by_token.sum())


def test_distances_leave_out_the_first_token_and_the_output_is_summed_over_heads():
    sums = attention_sums(Q, K, V, OUT)
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    probabilities = (Q[0] @ K[0].mT / 6**0.5).masked_fill(future, -torch.inf).softmax(-1)
    near(sums.distances[:, 2], sum(probabilities[:, t, t - 2] for t in range(3, 7)))
    near(sums.output, attend().sum(0).square().sum())


def test_costs_are_sums_over_the_heads_of_a_group():
    moments, weights = torch.stack([positive(6, seed) for seed in range(4)]), torch.tensor([1.0, 2, 3, 4]).double()
    keys, values = key_cost(moments, weights, 2), value_cost(OUT, weights, 2)
    near(keys[:6, :6], (moments[0] + 2 * moments[1]) / 6)
    near(values[6:, 6:], 3 * OUT[2].mT @ OUT[2] + 4 * OUT[3].mT @ OUT[3])
    near(keys[:6, 6:], torch.zeros(6, 6, dtype=torch.float64))


def test_absorbed_decoding_is_expanded_attention():
    """Scores of a latent against queries that were multiplied by `up`, and values expanded behind the average."""
    found = factorise(STACKED @ SECOND @ STACKED.mT, COST, 4)
    latent, query = INPUTS @ (found.down @ STACKED).mT, drawn(5, seed=12)
    expanded = latent @ found.up.mT
    probabilities = (expanded[:, :5] @ query).softmax(0)
    near((latent @ (found.up[:5].mT @ query)).softmax(0), probabilities)
    near(found.up[5:] @ (probabilities @ latent), probabilities @ expanded[:, 5:])


def test_the_near_constant_is_the_least_squares_of_one():
    inputs = INPUTS + 3
    best = torch.linalg.lstsq(inputs, torch.ones(TOKENS, 1, dtype=torch.float64)).solution[:, 0]
    near(near_constant(inputs.mT @ inputs / TOKENS, inputs.mean(0), 0.0), best, 1e-8)


# -- fitted again --------------------------------------------------------------------------------------------------

WEIGHT, WANTED = drawn(8, WIDTH, seed=20), drawn(TOKENS, 8, seed=21)


def test_without_a_ridge_the_refitted_weight_is_least_squares():
    best = torch.linalg.lstsq(INPUTS, WANTED).solution.mT
    near(refitted(WEIGHT, RegressionSums.of(INPUTS, WANTED), 0.0), best, 1e-8)


def test_with_a_large_ridge_it_is_the_weight_that_is_there():
    near(refitted(WEIGHT, RegressionSums.of(INPUTS, WANTED), 1e12), WEIGHT, 1e-8)


def test_the_error_of_a_weight_comes_from_sums_alone():
    parts = RegressionSums.of(INPUTS[:10], WANTED[:10]) + RegressionSums.of(INPUTS[10:], WANTED[10:])
    error = (WANTED - INPUTS @ WEIGHT.mT).square().sum() / WANTED.square().sum()
    assert parts.error(WEIGHT) == pytest.approx(float(error), rel=1e-10)


def test_held_out_text_may_choose_to_change_nothing():
    given, held_out = RegressionSums.of(INPUTS[:12], WANTED[:12]), INPUTS[12:]
    exact = RegressionSums.of(held_out, held_out @ WEIGHT.mT)
    weight, before, after = chosen(WEIGHT, given, exact)
    assert weight is WEIGHT
    assert before == after == pytest.approx(0, abs=1e-12)
    same = RegressionSums.of(INPUTS[:12], WANTED[:12])
    assert chosen(WEIGHT, given, same)[2] < 0.5 * chosen(WEIGHT, given, same)[1]


# -- ranks -------------------------------------------------------------------------------------------------------------

SPECTRA = st.lists(st.lists(st.floats(0.01, 100), min_size=3, max_size=4), min_size=2, max_size=3)


@settings(max_examples=40, deadline=None)
@given(SPECTRA, st.integers(3, 6))
def test_greedy_ranks_are_the_best_of_all(values, total):
    spectra = [torch.tensor(sorted(some, reverse=True), dtype=torch.float64) for some in values]
    every = [r for r in itertools.product(*(range(len(s) + 1) for s in spectra)) if sum(r) == total]
    found = greedy_ranks(spectra, total)
    assert sum(found) == total
    assert loss(spectra, found) == pytest.approx(min(loss(spectra, ranks) for ranks in every))
    assert loss(spectra, found) <= loss(spectra, paper_ranks(spectra, total)) + 1e-9


def test_no_rank_exceeds_the_largest():
    spectra = [torch.tensor([9.0, 8, 7]).double(), torch.tensor([1.0, 0.5, 0.1]).double()]
    assert greedy_ranks(spectra, 3) == [3, 0]
    assert greedy_ranks(spectra, 3, largest=2) == [2, 1]


def test_the_papers_rule_feeds_whoever_is_ahead():
    """The one that falls faster takes nearly everything, although it has less to lose."""
    spectra = [torch.tensor([1.0, 0.9, 0.8, 0.7]).double(), torch.tensor([1.0, 0.5, 0.25, 0.125]).double()]
    assert paper_ranks(spectra, 5) == [1, 4]
    assert greedy_ranks(spectra, 5) == [4, 1]
