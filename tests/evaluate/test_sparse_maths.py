"""Sparse attention's rules: equal to their published formulas, written out as loops, and true to their bounds."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from burnish.evaluate.maths import drawing, inclusion, selection

HEADS, KV_HEADS, KEYS, WIDTH = 4, 2, 37, 8
POSITIONS = torch.tensor([20, 29, 36])


@pytest.fixture
def drawn():
    """Query, key, value, scaled scores (-inf behind a query), seen keys, in float64."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key = normal(HEADS, len(POSITIONS), WIDTH), normal(KV_HEADS, KEYS, WIDTH)
    value = normal(HEADS, KEYS, WIDTH)
    seen = selection.seen(POSITIONS, KEYS)
    scores = (query @ key.repeat_interleave(2, dim=0).mT / WIDTH**0.5).masked_fill(~seen, -torch.inf)
    return query, key, value, scores, seen.expand(HEADS, -1, -1)


def chosen_by(rank, free, num):
    """{the `num` free keys that come first by (rank, key)} of each head and query."""
    found = torch.zeros_like(free)
    for head in range(free.shape[0]):
        for query in range(free.shape[1]):
            keys = [key for key in range(free.shape[2]) if free[head, query, key]]
            keys.sort(key=lambda key: (-rank(head, query, key), key))
            for key in keys[: num(query)]:
                found[head, query, key] = True
    return found


# -- rules that draw nothing -------------------------------------------------------------------------------------------


def test_sinks_and_window_are_the_first_and_the_last_keys():
    first, last = selection.sinks(POSITIONS, KEYS, 3), selection.local(POSITIONS, KEYS, 4)
    for row, position in enumerate(POSITIONS.tolist()):
        assert first[row].nonzero().flatten().tolist() == [0, 1, 2]
        assert last[row].nonzero().flatten().tolist() == list(range(position - 3, position + 1))


def test_sinks_behind_the_query_are_not_seen():
    assert selection.sinks(torch.tensor([1]), 8, 4).nonzero()[:, 1].tolist() == [0, 1]


def test_top_k_takes_the_largest_free_scores(drawn):
    *_, scores, seen = drawn
    free = seen & ~selection.sinks(POSITIONS, KEYS, 3)
    num = torch.tensor([[2, 5, 60]])
    expected = chosen_by(lambda head, query, key: scores[head, query, key], free, lambda query: int(num[0, query]))
    assert torch.equal(selection.top_k(scores, free, num), expected)


def test_of_equal_scores_the_first_keys_are_taken():
    free = torch.arange(6)[None, None] > 0
    taken = selection.top_k(torch.zeros(1, 1, 6), free, torch.tensor([[2]]))
    assert taken.nonzero()[:, 2].tolist() == [1, 2]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_top_p_is_the_smallest_set_that_holds_the_share(drawn, share):
    *_, scores, seen = drawn
    chosen = selection.top_p(scores, seen, share)
    masses = scores.softmax(dim=-1)
    for head in range(HEADS):
        for query in range(len(POSITIONS)):
            total = 0.0
            for key in sorted(range(KEYS), key=lambda key: -masses[head, query, key]):
                assert bool(chosen[head, query, key]) == (total < share and bool(seen[head, query, key]))
                total += float(masses[head, query, key])


def test_top_p_of_everything_is_everything_even_what_weighs_nothing():
    scores = torch.tensor([[[0.0, -1e4, 300.0]]])
    seen = torch.ones_like(scores, dtype=torch.bool)
    assert selection.top_p(scores, seen, 1.0).all()


@pytest.mark.parametrize("page", [1, 4, 16, 50])
def test_quest_takes_the_pages_with_the_largest_bounds(drawn, page):
    query, key, _, _, seen = drawn
    free = seen & ~selection.sinks(POSITIONS, KEYS, 5)
    num = torch.tensor([[3, 7, 9]])
    bounds = selection.page_bounds(query, key, POSITIONS, page)
    expected = torch.zeros_like(free)
    for head in range(HEADS):
        for row, position in enumerate(POSITIONS.tolist()):
            ranked = []
            for start in range(0, position + 1, page):
                keys = key[head // 2, start : min(start + page, position + 1)]
                low, high = keys.min(dim=0).values, keys.max(dim=0).values
                bound = sum(
                    max(float(q * a), float(q * b)) for q, a, b in zip(query[head, row], low, high, strict=True)
                )
                assert bound == pytest.approx(float(bounds[head, row, start // page]))
                if free[head, row, start : start + page].any():
                    ranked.append((-bound, start))
            for _, start in sorted(ranked)[: math.ceil(int(num[0, row]) / page)]:
                expected[head, row, start : start + page] = free[head, row, start : start + page]
    assert torch.equal(selection.quest(bounds, free, num, page), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), page=st.integers(1, 9), scale=st.floats(0.01, 100))
def test_no_score_of_a_page_is_above_its_bound(seed, page, scale):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) * scale
    key = torch.randn(1, 20, 5, generator=generator, dtype=torch.float64) - 0.5
    positions = torch.tensor([4, 11, 19])
    bounds = selection.page_bounds(query, key, positions, page)
    scores = query @ key.mT
    over = bounds.repeat_interleave(page, dim=-1)[..., :20] - scores
    assert (over[selection.seen(positions, 20).expand_as(over)] > -1e-9 * scale).all()
    assert (bounds[:, 0, 4 // page + 1 :] == -torch.inf).all()


def test_quest_with_pages_of_one_key_is_top_k(drawn):
    query, key, _, scores, seen = drawn
    num = torch.tensor([[4, 4, 4]])
    bounds = selection.page_bounds(query, key, POSITIONS, 1)
    assert torch.equal(selection.quest(bounds, seen, num, 1), selection.top_k(scores, seen, num))


def test_double_sparsity_scores_by_its_channels_in_few_bits(drawn):
    query, key, _, _, _ = drawn
    heavy = selection.heavy_channels(query.abs().mean(dim=1), key.abs().mean(dim=1), 3)
    found = selection.label_scores(query, key, heavy, 2)

    def steps(numbers):
        low, high = min(numbers), max(numbers)
        return [low + round((one - low) / (high - low) * 3) * (high - low) / 3 for one in numbers]

    for head in range(HEADS):
        shared = sum(query[other].abs().mean(dim=0) for other in (head // 2 * 2, head // 2 * 2 + 1)) / 2
        products = (shared * key[head // 2].abs().mean(dim=0)).tolist()
        wanted = sorted(range(WIDTH), key=lambda channel: -products[channel])[:3]
        assert heavy[head // 2].tolist() == wanted
        for row in range(len(POSITIONS)):
            asked = steps([float(query[head, row, channel]) for channel in wanted])
            for place in range(KEYS):
                label = steps([float(key[head // 2, place, channel]) for channel in wanted])
                product = sum(one * other for one, other in zip(asked, label, strict=True))
                assert float(found[head, row, place]) == pytest.approx(product)


def test_double_sparsity_with_all_channels_and_many_bits_orders_as_the_scores_do(drawn):
    query, key, _, scores, seen = drawn
    everything = torch.arange(WIDTH).expand(KV_HEADS, -1)
    num = torch.tensor([[6, 6, 6]])
    labels = selection.label_scores(query, key, everything, 16)
    assert torch.equal(selection.top_k(labels, seen, num), selection.top_k(scores, seen, num))


def test_snapkv_keeps_its_window_and_what_the_window_looks_at():
    window, num, pool = 3, 12, 5
    positions = torch.arange(KEYS - window, KEYS)
    full = torch.randn(HEADS, window, KEYS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    full = full.masked_fill(~selection.seen(positions, KEYS), -torch.inf)
    kept = selection.snapkv(full, KV_HEADS, num, pool)
    for head in range(KV_HEADS):
        masses = sum(full[2 * head + other, row].softmax(dim=0) for other in range(2) for row in range(window)) / 2
        before = masses[: KEYS - window].tolist()
        pooled = [sum(before[max(0, place - 2) : place + 3]) / pool for place in range(len(before))]
        first = sorted(range(len(before)), key=lambda place: -pooled[place])[: num - window]
        assert kept[head].nonzero().flatten().tolist() == sorted(first) + list(range(KEYS - window, KEYS))
    assert selection.snapkv(full, KV_HEADS, KEYS, pool).all()
    assert selection.snapkv(full, KV_HEADS, 2, pool).nonzero()[:, 1].tolist() == [KEYS - 2, KEYS - 1] * KV_HEADS


# -- rules that draw ---------------------------------------------------------------------------------------------------


def sums(scores, weights, value):
    """Numerator and denominator of attention over a part of the keys, before they are divided."""
    exponentials = torch.where(weights > 0, scores.exp() / torch.where(weights > 0, weights, 1), 0)
    return exponentials @ value, exponentials.sum(dim=-1)


def assert_unbiased(estimates, exact):
    """The mean of many draws is the sum over all keys, within four standard errors of each of some hundred numbers."""
    each = torch.stack(estimates)
    error = each.std(dim=0) / len(each) ** 0.5
    assert ((each.mean(dim=0) - exact).abs() <= 4 * error + 1e-9).all()


def test_random_keys_have_the_dense_sums_as_their_mean(drawn):
    _, _, value, scores, seen = drawn
    generator = torch.Generator().manual_seed(0)
    found = [
        sums(scores, drawing.uniform(torch.rand(seen.shape, generator=generator).double(), seen, 0.3), value)
        for _ in range(600)
    ]
    exact = sums(scores, seen.double(), value)
    for place in range(2):
        assert_unbiased([one[place] for one in found], exact[place])


def test_adaptively_many_keys_have_the_dense_sums_as_their_mean(drawn):
    _, _, value, scores, seen = drawn
    generator = torch.Generator().manual_seed(0)
    chosen = selection.sinks(POSITIONS, KEYS, 3).expand_as(seen)

    def once():
        draws = torch.rand(2, *seen.shape, generator=generator).double()
        weights = drawing.adaptive(scores, chosen, seen & ~chosen, draws, base=0.2, epsilon=0.4, quantile=1.0)
        return sums(scores, torch.where(chosen, 1.0, weights), value)

    found, exact = [once() for _ in range(600)], sums(scores, seen.double(), value)
    for place in range(2):
        assert_unbiased([one[place] for one in found], exact[place])


def test_the_adaptive_number_grows_with_the_inverse_square_of_epsilon_until_all_are_taken():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 1, 4000, generator=generator, dtype=torch.float64) * 0.5
    seen = torch.ones_like(scores, dtype=torch.bool)
    draws = torch.rand(2, 1, 1, 4000, generator=generator).double()
    nums = [
        int((drawing.adaptive(scores, ~seen, seen, draws, base=0.01, epsilon=epsilon, quantile=1.28) > 0).sum())
        for epsilon in (0.16, 0.08, 0.04, 0.02, 0.001)
    ]
    assert nums[0] >= 40 and nums[-1] == 4000
    assert nums[2] / nums[1] == pytest.approx(4, rel=0.05) and nums[3] / nums[2] == pytest.approx(4, rel=0.05)
    weights = drawing.adaptive(scores, ~seen, seen, draws, base=0.01, epsilon=0.04, quantile=1.28)
    assert weights.max() == pytest.approx(nums[2] / 4000)


def test_the_adaptive_number_is_the_published_formula():
    """All keys looked at first: the estimates are those of the whole, and the number follows by hand."""
    scores = torch.tensor([[[0.0, 0.7, -0.3, 0.2, 1.1, -0.8, 0.4, 0.9]]], dtype=torch.float64)
    seen = torch.ones_like(scores, dtype=torch.bool)
    exponentials = (scores[0, 0] - 1.1).exp()
    sigma, total = float(exponentials.std()), float(exponentials.sum())
    for epsilon in (0.3, 0.5):
        draws = torch.rand(2, *scores.shape, generator=torch.Generator().manual_seed(0)).double()
        found = drawing.adaptive(scores, ~seen, seen, draws, base=1.0, epsilon=epsilon, quantile=1.6)
        wanted = math.ceil((1.6 * sigma * 8 / (epsilon * total)) ** 2)
        assert (found > 0).sum() == min(8, max(8, wanted))
        found = drawing.adaptive(scores, ~seen, seen, draws, base=0.25, epsilon=epsilon, quantile=1.6)
        two = draws[0].argsort(descending=True)[0, 0, :2]
        looked = exponentials[two]
        wanted = math.ceil((1.6 * float(looked.std()) * 8 / (epsilon * float(looked.mean()) * 8)) ** 2)
        assert (found > 0).sum() == min(8, max(2, wanted))


@pytest.mark.parametrize("shared", [1, 2])
def test_tables_collide_as_often_as_angles_say(shared):
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(1, 1, 6, generator=generator)
    key = torch.nn.functional.normalize(torch.randn(1, 40, 7, generator=generator), dim=-1)
    bits, tables, repeats = 3, 5, 1500
    counts = torch.zeros(1, 1, 40)
    for _ in range(repeats):
        directions = torch.randn(7, tables * bits, generator=generator)
        codes = drawing.table_codes(key, directions, bits)
        weights = drawing.magicpig(query, key, codes, directions, bits, shared)
        counts += weights > 0
    padded = torch.nn.functional.pad(torch.nn.functional.normalize(query, dim=-1), (0, 1))
    for place in range(40):
        sign = 1 - math.acos(float(padded[0, 0] @ key[0, place])) / math.pi
        none = (1 - sign**bits) ** tables
        one = tables * sign**bits * (1 - sign**bits) ** (tables - 1)
        wanted = 1 - none - (one if shared == 2 else 0)
        error = math.sqrt(wanted * (1 - wanted) / repeats)
        assert abs(float(counts[0, 0, place]) / repeats - wanted) < 4.5 * error
        hit = weights[0, 0, place]
        assert hit == 0 or float(hit) == pytest.approx(wanted, rel=1e-4)


def test_keys_that_collide_have_the_dense_sums_as_their_mean(drawn):
    query, key, value, scores, seen = drawn
    generator = torch.Generator().manual_seed(5)
    centre = key.mean(dim=1)
    longest = (key - centre[:, None]).norm(dim=-1).amax(dim=1)
    unit = drawing.augmented_keys(key, centre, longest)

    def once():
        directions = torch.randn(WIDTH + 1, 12 * 2, generator=generator, dtype=torch.float64)
        codes = drawing.table_codes(unit, directions, 2)
        weights = drawing.magicpig(query, unit, codes, directions, 2, 1)
        return sums(scores, torch.where(seen, weights, 0), value)

    found, exact = [once() for _ in range(400)], sums(scores, seen.double(), value)
    for place in range(2):
        assert_unbiased([one[place] for one in found], exact[place])


def test_angles_to_augmented_keys_order_as_products_do(drawn):
    query, key, *_ = drawn
    centre, longest = key.mean(dim=1), (key - key.mean(dim=1, keepdim=True)).norm(dim=-1).amax(dim=1)
    unit = drawing.augmented_keys(key, centre, longest)
    assert_close(unit.norm(dim=-1), torch.ones(KV_HEADS, KEYS, dtype=torch.float64))
    cosine = torch.nn.functional.pad(torch.nn.functional.normalize(query[0], dim=-1), (0, 1)) @ unit[0].mT
    assert torch.equal(cosine.argsort(dim=-1), (query[0] @ key[0].mT).argsort(dim=-1))


# -- outputs -----------------------------------------------------------------------------------------------------------


def test_output_is_the_weighted_mean_over_the_support(drawn):
    _, _, value, scores, seen = drawn
    generator = torch.Generator().manual_seed(0)
    drawn_keys, rates = torch.rand(2, *seen.shape, generator=generator).double()
    weights = torch.where(seen & (drawn_keys < 0.4), rates, 0)
    found = inclusion.attention_over(scores, weights, value)
    for head in range(HEADS):
        for row in range(len(POSITIONS)):
            keys = [key for key in range(KEYS) if weights[head, row, key] > 0]
            parts = {key: math.exp(scores[head, row, key]) / float(weights[head, row, key]) for key in keys}
            wanted = sum(part * value[head, key] for key, part in parts.items()) / sum(parts.values())
            assert_close(found[head, row], wanted)


def test_with_every_key_it_is_attention_and_with_none_it_is_zero(drawn):
    _, _, value, scores, seen = drawn
    assert_close(inclusion.attention_over(scores, seen.double(), value), scores.softmax(dim=-1) @ value)
    assert (inclusion.attention_over(scores, torch.zeros_like(scores), value) == 0).all()


def test_a_support_of_keys_that_weigh_next_to_nothing_is_no_division_by_zero():
    scores = torch.tensor([[[1000.0, 0.0, 1.0]]])
    found = inclusion.attention_over(scores, torch.tensor([[[0.0, 1.0, 1.0]]]), torch.eye(3)[None])
    assert_close(found[0, 0, 1:], torch.tensor([0.0, 1.0]).softmax(dim=0))


def test_the_error_of_top_k_falls_with_k(drawn):
    """Each output is as far from the dense one as the mass that is left out allows."""
    _, _, value, scores, seen = drawn
    dense = scores.softmax(dim=-1) @ value
    left = 1.0
    for num in (1, 4, 12, 24, 37):
        support = selection.top_k(scores, seen, torch.tensor([[num]]))
        found = inclusion.attention_over(scores, support.double(), value)
        recall = inclusion.mass_recall(scores, support, seen[0])
        assert (1 - recall <= left + 1e-9).all()
        left = 1 - recall
        bound = 2 * (1 - (scores.softmax(dim=-1) * support).sum(dim=-1)) * value.norm(dim=-1).amax()
        assert ((found - dense).norm(dim=-1) <= bound + 1e-9).all()
    assert_close(found, dense)


def test_density_of_disjoint_parts_adds_up(drawn):
    *_, scores, seen = drawn
    first = selection.sinks(POSITIONS, KEYS, 3).expand_as(seen)
    rest = selection.top_k(scores, seen & ~first, torch.tensor([[5]]))
    each = [inclusion.density(part, seen[0]) for part in (first, rest, first | rest)]
    assert_close(each[0] + each[1], each[2])
    assert_close(each[2], 8 / (POSITIONS + 1))


def test_heads_that_share_keys_read_their_union():
    support = torch.zeros(4, 1, 6, dtype=torch.bool)
    support[0, 0, :3] = support[1, 0, 2:4] = support[2, 0, 5:] = True
    assert inclusion.keys_read(support, 2).tolist() == [4 + 1]
    assert inclusion.keys_read(support, 4).tolist() == [3 + 2 + 1]


def test_the_relative_error_is_that_of_all_heads_together():
    dense, found = torch.zeros(2, 1, 2), torch.zeros(2, 1, 2)
    dense[0, 0], found[0, 0] = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])
    assert inclusion.relative_error(found, dense).tolist() == [pytest.approx(0.2)]


# -- the public hub ----------------------------------------------------------------------------------------------------

HUB = json.loads((Path(__file__).parents[1] / "reference" / "evaluate" / "sparse_attention.json").read_text())


def ours(name, query, key, scores, free):
    """Inclusion of one mechanism on the hub's tensors, behind what is chosen already."""
    seven = torch.tensor([[7]])
    if name == "topk":
        return selection.top_k(scores, free, seven).float()
    if name == "topp":
        return selection.top_p(scores, free, 0.6).float()
    if name == "quest":
        bounds = selection.page_bounds(query, key, torch.tensor([39]), 4)
        return selection.quest(bounds, free, torch.tensor([[16]]), 4).float()
    if name == "doublesparsity":
        channels = torch.tensor(HUB["channels"])[:, :4]
        return selection.top_k(selection.label_scores(query, key, channels, 3), free, seven).float()
    # The hub's MagicPIG has one largest norm for all heads; its keys are not centred here.
    longest = key.norm(dim=-1).amax().expand(2)
    unit, directions = drawing.augmented_keys(key, torch.zeros(2, 8), longest), torch.tensor(HUB["directions"])
    return drawing.magicpig(query, unit, drawing.table_codes(unit, directions, 3), directions, 3, 1)


@pytest.mark.parametrize("chain", sorted(HUB["found"]))
def test_masks_and_outputs_are_those_of_the_public_hub(chain):
    query, key, value = (torch.tensor(HUB[name]) for name in ("query", "key", "value"))
    last, seen = torch.tensor([39]), torch.ones(4, 1, 40, dtype=torch.bool)
    scores = query @ key.repeat_interleave(2, dim=0).mT / 8**0.5
    chosen = torch.zeros_like(seen)
    if chain.startswith("ends+"):
        chosen = (selection.sinks(last, 40, 2) | selection.local(last, 40, 4)).expand_as(seen)
    weights = ours(chain.removeprefix("ends+"), query, key, scores, seen & ~chosen)
    weights = torch.where(chosen, 1.0, weights)
    assert_close(weights[:, 0], torch.tensor(HUB["found"][chain]["inclusion"]), atol=1e-4, rtol=0)
    output = inclusion.attention_over(scores, weights, value.repeat_interleave(2, dim=0))
    assert_close(output[:, 0], torch.tensor(HUB["found"][chain]["output"]), atol=1e-4, rtol=0)
