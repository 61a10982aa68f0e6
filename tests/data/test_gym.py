"""`burnish data gym`: problems that their verifier grades, the same by seed, apart by question."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish.cli import main
from burnish.core.errors import SettingsError
from burnish.data.gym import TRIES, gym_rows
from burnish.verify import read_problems, verifier

pytest.importorskip("reasoning_gym")

TASKS = ["chain_sum", "maze", "countdown"]


def test_problems_load_and_their_answers_are_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    tasks = [word for task in TASKS for word in ("--task", task)]
    main(["data", "gym", *tasks, "-n", "12", "-o", str(train)])
    main(["data", "gym", *tasks, "-n", "12", "--seed", "1", "--apart-from", str(train), "-o", str(test)])
    assert "12 problems of chain_sum, maze, countdown" in capsys.readouterr().out
    with verifier("reasoning-gym") as gym:
        problems = read_problems(train, gym) + read_problems(test, gym)
        assert [problem["task"] for problem in problems] == 8 * TASKS
        assert len({problem["question"] for problem in problems}) == 24
        assert {gym.score(f"<answer>{one['entry']['answer']}</answer>", one) for one in problems} == {1.0}


def test_a_row_follows_from_its_seed_and_neighbouring_seeds_share_none():
    rows = list(gym_rows(["chain_sum"], 20, seed=4))
    assert rows[:5] == list(gym_rows(["chain_sum"], 20, seed=4))[:5]
    other = {row["question"] for row in gym_rows(["chain_sum"], 20, seed=5)}
    assert not other & {row["question"] for row in rows}


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        (["chain_sums"], "no task 'chain_sums'.*did you mean 'chain_sum'"),
        (["composite"], "has no task 'composite'"),
        (["nonsense"], r"^reasoning-gym has no task 'nonsense'; its \d+ tasks are such as .{20,200}$"),
        ([], "each of them once"),
        (["maze", "maze"], "each of them once"),
    ],
)
def test_what_cannot_be_made_is_said(tasks: list[str], sentence: str):
    with pytest.raises(SettingsError, match=sentence):
        list(gym_rows(tasks, 2, seed=0))


def test_a_task_that_has_no_other_problems_is_said():
    every = {row["question"] for row in gym_rows(["chain_sum"], TRIES, seed=0)}
    with pytest.raises(SettingsError, match="'chain_sum' has not 1 different problems that are not held out"):
        list(gym_rows(["chain_sum"], 1, seed=0, apart_from=every))
