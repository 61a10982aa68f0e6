"""Rewards that look at length: order, limits and invariances of the published family and of Short-ARC."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from burnish.align.maths.advantage import centred, standardised
from burnish.align.maths.length_rules import (
    RULES,
    Alp,
    FixedPenalty,
    GatedEfficiency,
    Kimi,
    L1Exact,
    L1Max,
    Laser,
    LaserD,
    LaserDE,
    LengthRule,
    Plain,
    Sigmoid,
    SoftOverlong,
    Truncation,
    covering_limit,
    kept_shortest,
    penalty_step,
    thinking_advantage,
)
from burnish.align.maths.short_arc import Controller, redundancy, short_arc

LIMIT = 64
EVERY: list[LengthRule] = [
    Plain(),
    Truncation(30),
    SoftOverlong(LIMIT, 20),
    Kimi(),
    Kimi(only_length=True),
    Sigmoid(),
    L1Exact(20, 0.05),
    L1Max(20, 0.05),
    Laser(30),
    LaserD((20, 30, 40)),
    LaserDE((20, 30, 40)),
    Alp(LIMIT),
    Alp(LIMIT, weight=2.0),
    FixedPenalty(0.05),
    GatedEfficiency(),
]


@st.composite
def groups(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    size = draw(st.integers(2, 6))
    correct = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    length = draw(st.lists(st.integers(1, LIMIT), min_size=size, max_size=size))
    return torch.tensor([correct], dtype=torch.float64), torch.tensor([length], dtype=torch.float64)


def ordered(reward: Tensor, correct: Tensor) -> bool:
    right, wrong = reward[correct > 0], reward[correct == 0]
    return not len(right) or not len(wrong) or bool(right.min() > wrong.max())


def numbers(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(groups())
def test_a_rule_that_says_so_puts_every_right_answer_above_every_wrong_one(group: tuple[Tensor, Tensor]) -> None:
    correct, length = group
    for rule in EVERY:
        if rule.preserves_order:
            assert ordered(rule(correct, length), correct), rule


@pytest.mark.parametrize("rule", [rule for rule in EVERY if not rule.preserves_order], ids=repr)
def test_a_rule_that_says_it_does_not_has_a_group_where_a_wrong_answer_is_worth_as_much(rule: LengthRule) -> None:
    correct = numbers(1, 1, 0)
    assert not ordered(rule(correct, numbers(LIMIT, 1, 1)), correct)


def test_every_rule_of_the_table_is_among_those_that_are_fuzzed() -> None:
    assert {type(rule) for rule in EVERY} == set(RULES.values())


@settings(deadline=None, max_examples=30)
@given(groups(), st.randoms(use_true_random=False))
def test_the_order_of_rollouts_in_a_group_does_not_matter(group: tuple[Tensor, Tensor], random_) -> None:
    correct, length = group
    order = list(range(correct.shape[1]))
    random_.shuffle(order)
    for rule in EVERY:
        torch.testing.assert_close(rule(correct, length)[:, order], rule(correct[:, order], length[:, order]))


def test_kimi_gives_the_middle_of_the_range_nothing_and_a_wrong_answer_no_bonus() -> None:
    reward = Kimi(weight=0.4)(numbers(1, 1, 1, 0, 0), numbers(10, 20, 30, 10, 30))
    torch.testing.assert_close(reward, numbers(1.2, 1.0, 0.8, 0.0, -0.2))


def test_kimi_on_answers_of_one_length_is_correctness_alone() -> None:
    torch.testing.assert_close(Kimi()(numbers(1, 0), numbers(7, 7)), numbers(1, 0))


def test_soft_overlong_equals_trls_own() -> None:
    from trl.rewards import get_soft_overlong_punishment

    lengths = [1, 44, 45, 50, 63, 64, 65, 90]
    theirs = get_soft_overlong_punishment(64, 20)(completion_ids=[[0] * length for length in lengths])
    ours = SoftOverlong(64, 20)(torch.zeros(1, 8, dtype=torch.float64), numbers(*lengths))
    torch.testing.assert_close(ours, numbers(*theirs))


def test_sigmoid_takes_half_its_weight_from_the_mean_of_the_right_answers() -> None:
    reward = Sigmoid(0.4)(numbers(1, 1, 1, 0), numbers(10, 20, 30, 500))
    spread = (200 / 3) ** 0.5
    expected = [1 - 0.4 / (1 + torch.e ** (-(length - 20) / spread)) for length in (10, 20, 30)]
    torch.testing.assert_close(reward, numbers(*expected, 0.0))
    assert reward[0, 1] == pytest.approx(0.8)


def test_l1_max_of_the_paper_is_that_of_the_program_at_half_its_weight() -> None:
    length = numbers(0, 10, 20, 35, 60)
    program = ((0.05 * (20 - length)).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(L1Max(20, weight=0.025)(torch.ones_like(length), length), program)


def test_laser_d_takes_the_limit_of_the_prompts_own_difficulty() -> None:
    correct = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.float64)
    reward = LaserD((20, 30, 40))(correct, torch.full_like(correct, 25))
    assert reward.tolist() == [[1.0, 1.0, 1.0], [1.5, -0.5, -0.5], [-0.5, -0.5, -0.5]]


def test_laser_de_rewards_a_long_wrong_answer_unless_it_repeats_itself() -> None:
    rule, correct = LaserDE((20, 30, 40)), numbers(0, 0, 0)
    repeats = torch.tensor([[False, True, False]])
    assert rule.explored(correct, numbers(50, 50, 10), repeats).tolist() == [[0.0, -0.5, -0.5]]


def test_covering_limit_is_the_shortest_that_covers_one_answer_of_a_group() -> None:
    correct, length = torch.ones(1, 4), torch.tensor([[1000.0, 2000, 3000, 4000]])
    thresholds = torch.tensor([1000.0, 2000, 3000, 4000])
    assert covering_limit(correct, length, thresholds, rate=0.5) == 1000  # int(0.25 * 4) = 1
    assert covering_limit(correct, length, thresholds, rate=0.3) == 2000  # int(0.5 * 2) = 1
    assert covering_limit(torch.zeros(1, 4), length, thresholds, rate=0.5) == 4000


def test_alp_asks_more_of_prompts_that_are_solved() -> None:
    easy, hard = Alp(LIMIT)(numbers(1, 1), numbers(32, 32)), Alp(LIMIT)(numbers(1, 0), numbers(32, 32))
    assert easy.tolist() == [[0.75, 0.75]] and hard.tolist() == [[0.875, -0.125]]


def test_the_price_of_a_dlp_follows_accuracy_and_is_never_negative() -> None:
    assert penalty_step(0.1, 0.9, 0.8, 0.5) == pytest.approx(0.15)
    assert penalty_step(0.01, 0.5, 0.8, 0.5) == 0.0


def test_gfpo_keeps_the_shortest_or_the_most_efficient() -> None:
    correct, length = numbers(0, 1, 1, 0), numbers(1, 2, 3, 4)
    assert kept_shortest(correct, length, 2).tolist() == [[True, True, False, False]]
    assert kept_shortest(correct, length, 2, by_efficiency=True).tolist() == [[False, True, True, False]]


def test_adaptthink_pays_a_bonus_for_answers_without_thinking() -> None:
    thinks = torch.tensor([[True, False, True]])
    found = thinking_advantage(numbers(1, 1, 0), thinks, torch.tensor([0.5], dtype=torch.float64))
    torch.testing.assert_close(found, numbers(0.5, 0.55, -0.5))


# -- Short-ARC -----------------------------------------------------------------------------------------------------

OPTIONS = st.fixed_dictionaries(
    {
        "alpha": st.floats(0, 0.9),
        "p_min": st.floats(0, 0.9),
        "scale": st.none() | st.floats(0.5, 100),
        "quantile": st.floats(0, 1),
    }
)


@settings(deadline=None, max_examples=80)
@given(groups(), OPTIONS)
def test_short_arc_never_ranks_a_wrong_answer_with_a_right_one(group: tuple[Tensor, Tensor], options) -> None:
    correct, length = group
    reward = short_arc(correct, length, **options)
    assert ordered(reward, correct)
    assert (reward[correct == 0] == 0).all()
    assert abs(float(centred(reward).sum())) < 1e-12


@settings(deadline=None, max_examples=30)
@given(groups(), OPTIONS, st.sampled_from([2.0, 4.0, 16.0]))
def test_short_arc_does_not_know_the_unit_of_length(group: tuple[Tensor, Tensor], options, factor: float) -> None:
    correct, length = group
    scaled = options | {"scale": options["scale"] and options["scale"] * factor}
    torch.testing.assert_close(short_arc(correct, length, **options), short_arc(correct, length * factor, **scaled))


def test_short_arc_of_one_right_answer_is_correctness_alone() -> None:
    correct = numbers(0, 1, 0)
    assert torch.equal(short_arc(correct, numbers(3, 60, 5), alpha=0.9, p_min=0.0), correct)


def test_short_arc_of_wrong_answers_alone_has_no_advantage() -> None:
    assert not centred(short_arc(numbers(0, 0, 0), numbers(3, 60, 5), alpha=0.9)).any()


def test_short_arc_without_alpha_is_correctness_and_with_a_wide_scale_nearly_so() -> None:
    correct, length = numbers(1, 1, 0, 1), numbers(5, 9, 2, 50)
    assert torch.equal(short_arc(correct, length, alpha=0.0), correct)
    torch.testing.assert_close(short_arc(correct, length, alpha=0.9, scale=1e9), correct, atol=1e-6, rtol=0)


def test_short_arc_with_a_narrow_scale_is_a_step_at_the_shortest_right_answer() -> None:
    reward = short_arc(numbers(1, 1, 1), numbers(5, 6, 50), alpha=0.4, scale=1e-6)
    torch.testing.assert_close(reward, numbers(1, 0.6, 0.6))


def test_short_arc_puts_no_pressure_on_a_prompt_that_is_not_mastered() -> None:
    correct = numbers(1, 1, 0, 0)
    assert torch.equal(short_arc(correct, numbers(5, 50, 5, 5), alpha=0.9, p_min=0.5), correct)
    assert short_arc(correct, numbers(5, 50, 5, 5), alpha=0.9, p_min=0.0)[0, 1] == pytest.approx(1 - 0.9 * 0.5)


def test_short_arc_is_relative_to_the_shortest_right_answer_by_default() -> None:
    torch.testing.assert_close(short_arc(numbers(1, 1, 1), numbers(10, 15, 40), alpha=0.5), numbers(1, 0.75, 0.5))


def test_divided_by_the_deviation_the_advantage_would_not_depend_on_alpha() -> None:
    correct, length = numbers(1, 1, 1, 1), numbers(10, 11, 12, 13)
    weak, strong = (short_arc(correct, length, alpha) for alpha in (0.01, 0.9))
    torch.testing.assert_close(standardised(weak, eps=0.0), standardised(strong, eps=0.0))
    torch.testing.assert_close(centred(strong), centred(weak) * 90)


def test_redundancy_is_the_share_of_tokens_beyond_the_shortest_right_answer() -> None:
    correct = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    length = torch.tensor([[10.0, 30, 99], [50, 50, 50]])
    assert float(redundancy(correct, length)) == pytest.approx(20 / 40)


# -- the controller ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.02, 0.1, 0.5])
def test_the_controller_settles_where_accuracy_meets_its_target(slope: float) -> None:
    controller = Controller(target=0.95 - slope * 0.4, alpha=0.9, memory=0.9)
    for _ in range(600):
        controller.update(0.95 - slope * controller.alpha)
    assert 0.95 - slope * controller.alpha == pytest.approx(controller.target, rel=0.02)
    assert controller.alpha == pytest.approx(0.4, abs=0.05)


def test_the_first_step_does_not_depend_on_how_much_head_room_accuracy_has() -> None:
    steps = []
    for start in (0.6, 0.9, 0.999):
        controller = Controller(target=start - 0.01, tolerance=0.01, alpha=0.5)
        steps.append(controller.update(start) - 0.5)
    assert steps == pytest.approx([0.02, 0.02, 0.02])


def test_the_controller_does_not_wind_up_at_its_bounds() -> None:
    high, low = Controller(target=0.5), Controller(target=0.5)
    for _ in range(1000):
        high.update(1.0)
        low.update(0.0)
    assert (high.alpha, low.alpha) == (0.9, 0.0)
    high.memory = low.memory = 0.0  # a fresh mean: what is left is what the bounds have wound up
    assert high.update(0.0) < 0.9 and low.update(1.0) > 0.0


def test_pressure_is_let_go_of_sooner_than_it_is_built_up() -> None:
    controller = Controller(target=0.9, alpha=0.5, memory=0.0)
    up = controller.update(1.0) - 0.5
    down = 0.5 + up - controller.update(0.0)
    assert down == pytest.approx(4 * up)


def test_a_controller_goes_on_from_its_state_as_if_it_had_not_stopped() -> None:
    whole = Controller(target=0.9)
    for accuracy in (0.8, 0.95, 0.9):
        whole.update(accuracy)
    again = Controller(**whole.state())
    assert [whole.update(0.93), whole.update(0.85)] == [again.update(0.93), again.update(0.85)]
