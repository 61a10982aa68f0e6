"""Environments: what is asked, what is right, what is held out; and whether a start is good enough for RL."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from burnish.align.envs import ChainEnv, MixedEnv, ReasoningGymEnv, TableEnv, environment
from burnish.align.held_out import DrawnAnswers, answers, check_ready
from burnish.core.errors import DataError, SettingsError
from burnish.data.chain import Chains


def test_worked_solutions_earn_one_and_others_nothing() -> None:
    env = ChainEnv(6, seed=0)
    solutions = [problem["solution"] for problem in env.problems]
    completions = [[{"role": "assistant", "content": text}] for text in solutions]
    assert env.reward(completions, row=list(range(6))) == [1.0] * 6
    assert env.reward(["no idea"] * 6, row=list(range(6))) == [0.0] * 6


def test_a_reward_can_be_sent_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(ChainEnv(3, seed=0).reward))
    assert again(["#0", "#0", "#0"], row=[0, 1, 2]) == ChainEnv(3, seed=0).reward(["#0", "#0", "#0"], row=[0, 1, 2])


def test_the_shortest_answer_has_every_step_once_and_is_right() -> None:
    env = ChainEnv(20, seed=3, kind=Chains(repeat=0.9, slips=0.0, direct=0.0))
    for number, problem in enumerate(env.problems):
        shortest = env.shortest(number)
        assert "W" not in shortest and shortest.count("=") == problem["num_steps"]
        assert env.score(shortest, number) == 1.0


def test_problems_by_difficulty_come_in_order_and_are_equally_many() -> None:
    env = ChainEnv(8 * 3, seed=0, each=True)
    assert [env.bin(number) for number in range(24)] == [f"{steps} steps" for steps in range(1, 9) for _ in range(3)]


def test_questions_that_are_trained_on_are_refused_as_held_out() -> None:
    test = ChainEnv(50, seed=1, kind=Chains(steps=(1, 1)))
    with pytest.raises(DataError, match="held-out questions are trained on"):
        ChainEnv(400, seed=2, kind=Chains(steps=(1, 1))).apart_from(test)
    ChainEnv(100, seed=2, apart_from=test.questions).apart_from(test)


def test_the_reward_of_a_form_asks_for_an_answer_and_not_for_the_right_one() -> None:
    env = ChainEnv(2, seed=0)
    wrong = f"#{int(env.problems[0]['answer']) + 1}"
    assert env.readable([wrong, "no idea"], row=[0, 1]) == [1.0, 0.0]
    assert env.readable(["cut off"], row=[0], final=[wrong]) == [1.0]
    assert env.readable.__name__ == "format"


def test_problems_of_several_environments_are_each_graded_by_their_own() -> None:
    chains, tables = ChainEnv(4, seed=0), TableEnv(3, seed=0)
    mixed = MixedEnv(chains, [(tables, [2, 0, 2])])
    assert [row["row"] for row in mixed.rows] == list(range(7))
    assert [row["prompt"] for row in mixed.rows[4:]] == [tables.rows[n]["prompt"] for n in (2, 0, 2)]
    solutions = [*(one["solution"] for one in chains.problems), *(tables.problems[n]["solution"] for n in (2, 0, 2))]
    assert mixed.reward(solutions, row=list(range(7))) == [1.0] * 7
    assert mixed.reward(solutions[::-1], row=list(range(7))) != [1.0] * 7
    assert (mixed.bin(0), mixed.bin(6)) == (chains.bin(0), "2 cells")
    assert mixed.shortest(5) == tables.problems[0]["solution"]
    chains.grader.failures, tables.grader.failures = {"late": 1}, {"late": 2, "lost": 1}  # type: ignore[attr-defined]
    assert mixed.failures == {"late": 3, "lost": 1}


def test_environments_by_name() -> None:
    assert isinstance(environment("table", 2, 0), TableEnv)
    assert isinstance(environment("chain", 2, 0), ChainEnv)
    for name in ("chian", "reasoning_gym", "chain:sum"):
        with pytest.raises(SettingsError, match="there is no environment"):
            environment(name, 2, 0)


@pytest.mark.slow
def test_reasoning_gym_problems_are_graded_by_the_librarys_own_scorer() -> None:
    pytest.importorskip("reasoning_gym")
    env = ReasoningGymEnv("chain_sum", size=4, seed=0)
    gold = [str(problem["entry"]["answer"]) for problem in env.problems]
    assert env.reward([f"<answer>{one}</answer>" for one in gold], row=[0, 1, 2, 3]) == [1.0] * 4
    assert env.reward(["<answer>x</answer>"] * 4, row=[0, 1, 2, 3]) == [0.0] * 4
    env.close()


def found(accuracy: float, spare: float) -> DrawnAnswers:
    correct = np.array([1.0] * round(10 * accuracy) + [0.0] * (10 - round(10 * accuracy)))
    tokens = np.full(10, 20.0)
    return DrawnAnswers(
        ["2 steps"] * 10, correct, tokens, correct == 2, np.where(correct > 0, spare, np.nan), [""] * 10
    )


def test_a_start_below_the_floor_is_refused_with_the_difficulty_that_is() -> None:
    check_ready(found(0.8, 10.0), "chain", 0.8, 0.35)
    with pytest.raises(DataError, match=r"2 steps 0\.70, below the floor of 0\.8"):
        check_ready(found(0.7, 10.0), "chain", 0.8)


def test_a_start_with_nothing_to_shorten_is_said() -> None:
    with pytest.raises(DataError, match="25% of the start's tokens are redundant, below 35%"):
        check_ready(found(1.0, 5.0), "chain", 0.8, 0.35)


def test_answers_of_a_model_are_counted_by_difficulty(checkpoint) -> None:
    import burnish

    model = burnish.load(checkpoint)
    env = ChainEnv(4, seed=0, kind=Chains(steps=(1, 2)), each=True)
    drawn = answers(model.module, model.tokenizer, env, max_new_tokens=8, seed=1)
    rows = drawn.table("sampled")
    assert [row["difficulty"] for row in rows] == ["1 steps", "2 steps", "mean"]
    assert rows[-1]["tokens"] == pytest.approx(np.mean(drawn.tokens)) and drawn.tokens.max() <= 8
    assert np.isnan(drawn.redundant) == (not drawn.correct.any())
