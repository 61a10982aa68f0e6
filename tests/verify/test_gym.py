"""reasoning-gym's problems, graded by its own scorers, which read answers and never run them."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile import harmful

from burnish.core.errors import DataError
from burnish.verify import ReasoningGym, read_problems
from burnish.verify.gym_worker import LATER, formula, plain_data

pytest.importorskip("reasoning_gym")

EVALUATING = ("n_queens", "string_insertion", "spiral_matrix", "binary_matrix", "puzzle24", "countdown")
FORMULAS = ("simple_integration", "intermediate_integration", "polynomial_multiplication", "bitwise_arithmetic")
ARGUING = ("basic_arithmetic", "chain_sum", "sudoku", "arc_agi", "number_sorting", "maze")
UNANSWERED = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Tasks that come without an answer: their scorers check what is proposed."""


@pytest.fixture(scope="module")
def gym() -> Any:
    with ReasoningGym(seconds=20.0, processes=1) as one:
        yield one


def made(task: str, seed: int = 3) -> dict[str, Any]:
    """A generated problem that has been through a file."""
    from reasoning_gym import create_dataset

    return json.loads(json.dumps(create_dataset(task, size=1, seed=seed)[0], default=str))


def adapted(gym: ReasoningGym, task: str) -> dict[str, Any]:
    problem = gym.adapted({"id": task, **made(task)})
    gym.check(problem)
    return problem


@pytest.mark.parametrize("task", [*EVALUATING, *FORMULAS, *ARGUING])
def test_the_answer_of_a_generated_problem_is_right_and_another_is_not(gym: ReasoningGym, task: str):
    problem = adapted(gym, task)
    text = f"<think>hm</think>So it is <answer>{problem['entry']['answer']}</answer>."
    assert gym.score(text, problem) == 1.0
    assert gym.score("<answer>a pony</answer>", problem) < 0.5
    assert gym.score("no idea", problem) == 0.0


@pytest.mark.parametrize("task", [*EVALUATING, *FORMULAS])
def test_an_answer_is_never_run(gym: ReasoningGym, task: str, tmp_path: Path):
    canary = tmp_path / "canary"
    problem = adapted(gym, task)
    scores = [gym.grade(answer, problem) for answer in harmful(canary)]
    assert max(scores) < 0.5
    assert not canary.exists()


@pytest.mark.slow
def test_no_task_runs_an_answer_or_misses_its_own(gym: ReasoningGym, tmp_path: Path):
    from reasoning_gym.factory import DATASETS

    canary = tmp_path / "canary"
    wrong = []
    for task in sorted(set(DATASETS) - {"composite"}):
        problem = adapted(gym, task)
        gold = problem["entry"]["answer"]
        right = gym.grade(None if gold is None else str(gold), problem)
        wrong += [] if right == 1.0 else [task]
        for answer in harmful(canary):
            assert 0 <= gym.grade(answer, problem) <= 1  # one scorer takes whatever is not "True" for "False"
    assert set(wrong) == UNANSWERED
    assert not canary.exists()


def test_a_file_that_would_be_run_is_read(gym: ReasoningGym, tmp_path: Path):
    """One scorer evaluates the answer that the file gives."""
    canary = tmp_path / "canary"
    entry = {**made("number_sorting"), "answer": harmful(canary)[0]}
    problem = {"id": "1", "question": "?", "task": "number_sorting", "entry": entry}
    gym.check(problem)
    assert gym.grade("[1]", problem) < 1.0
    assert not canary.exists()


def test_an_answer_that_takes_for_ever_is_stopped_and_counted():
    with ReasoningGym(seconds=1.0, processes=1) as gym:
        problem = adapted(gym, "countdown")
        assert gym.grade("9**9**9**9", problem) == 0.0
        assert set(gym.failures) <= {"timeout", "crash"}
        assert sum(gym.failures.values()) == 1
        assert gym.grade(problem["entry"]["answer"], problem) == 1.0


def test_every_module_that_evaluates_is_imported_with_the_library_so_that_its_eval_is_taken():
    import reasoning_gym  # noqa: F401

    spec = importlib.util.find_spec("reasoning_gym")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    evaluating = {
        ".".join(["reasoning_gym", *file.relative_to(root).with_suffix("").parts])
        for file in root.rglob("*.py")
        if re.search(r"(?<![\w.])(eval|exec)\(", file.read_text(encoding="utf-8"))
    }
    assert len(evaluating) > 5
    assert evaluating <= {*sys.modules, *LATER}


@pytest.mark.parametrize("text", ["[[1, 'a'], (2.5,)]", "0x1f << 3 & 7", " -1", "'x' * 3"])
def test_data_and_arithmetic_are_read_as_python_reads_them(text: str):
    assert plain_data(text) == eval(text.strip())


@pytest.mark.parametrize("text", ["x", "f(1)", "(1).real", "[i for i in 'ab']", "a := 1", "1 if 2 else 3", "[1][0]"])
def test_what_is_more_than_data_is_not(text: str):
    with pytest.raises((ValueError, SyntaxError)):
        plain_data(text)


def test_a_formula_has_texts_in_names_and_numbers_alone():
    known: dict[str, Any] = {"Symbol": str, "sin": len}
    assert formula("sin(Symbol('x'))", known, {}) == 1
    for code in ("sin('x')", "Symbol('x') + 'y'", "open('x')", "sin(x=1)", "Symbol('x').y", "'x'", "f(Symbol('x'))(1)"):
        with pytest.raises(ValueError):
            formula(code, known, {})


def test_rows_of_the_library_and_rows_with_an_entry_are_one(gym: ReasoningGym, tmp_path: Path):
    row = made("chain_sum")
    path = tmp_path / "gym.jsonl"
    rows = [row, {"id": "x", "task": "chain_sum", "question": "What is it? <answer>", "entry": row}]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    first, second = read_problems(path, gym)
    assert first["task"] == second["task"]
    assert first["entry"]["answer"] == second["entry"]["answer"]
    assert gym.prompt(first).endswith("between <answer> and </answer>.")
    assert gym.prompt(second) == "What is it? <answer>"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": "chain_sums"}, r"task 'chain_sums' that reasoning-gym has not; did you mean 'chain_sum'"),
        ({"entry": "text"}, "an `entry` that is no object"),
        ({"entry": {"answer": "1 2"}, "task": "spell_backward", "question": ""}, "no `question`"),
        ({"entry": {"answer": "4"}, "task": "puzzle24x"}, "did you mean 'puzzle24'"),
        ({"entry": {"answer": "U"}, "task": "rubiks_cube"}, r"cannot read \(KeyError: 'metadata'\)"),
    ],
)
def test_a_row_that_cannot_be_graded_is_refused(gym: ReasoningGym, change: Any, sentence: str):
    with pytest.raises(DataError, match=sentence):
        gym.check({"question": "?", "task": "chain_sum", "entry": made("chain_sum")} | change, where="f:1")


def test_votes_are_one_whatever_their_spaces(gym: ReasoningGym):
    assert gym.equivalent("1 2\n3", " 1  2 3 ")
    assert not gym.equivalent("a", "A")
