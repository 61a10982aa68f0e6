"""Files in the shapes of HumanEval and LiveCodeBench, and where the program is in a text."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from made_problems import made_problems

from burnish.core.errors import DataError
from burnish.verify import Code, read_problems, walls
from burnish.verify.programs import same_output

pytestmark = pytest.mark.skipif(not all(wall.holds for wall in walls()), reason="no isolation here")


@pytest.fixture(scope="module")
def code() -> Code:
    return Code()


def packed(tests: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def row(kind: str, tests: list[dict[str, str]], hidden: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    return {
        "question_id": f"made-{kind}",
        "question_content": "Add.",
        "starter_code": more.get("starter", ""),
        "public_test_cases": json.dumps(tests),
        "private_test_cases": packed(hidden),
        "metadata": json.dumps({"func_name": "add"} if kind == "functional" else {}),
    }


def test_a_file_in_the_shape_of_livecodebench(tmp_path: Path, code: Code):
    script = row("stdin", [{"input": "1 2\n", "output": "3\n"}], [{"input": "5 6\n", "output": "11"}])
    method = row("functional", [{"input": "[1]\n2", "output": "[3]"}], [{"input": "[]\n2", "output": "[]"}])
    path = tmp_path / "lcb.jsonl"
    path.write_text(f"{json.dumps(script)}\n{json.dumps(method)}\n")
    one, two = read_problems(path, code)
    assert code.grade("print(sum(map(int, input().split())))", one) == 1.0
    assert code.explain("print(3)", one) == "wrong: test 2 of 2: another output"
    assert code.explain("print(1 / 0)", one) == "wrong: test 1 of 2: ZeroDivisionError: division by zero"
    right = "class Solution:\n    def add(self, items, n):\n        return tuple(i + n for i in items)\n"
    assert code.grade(right, two) == 1.0
    assert code.explain(right.replace("i + n", "3"), {**two, "private_test_cases": ""}) == "right"
    assert code.grade(right.replace("i + n", "i - n"), two) == 0.0


def test_a_file_in_the_shape_of_humaneval_with_a_helper_and_an_unfinished_function(tmp_path: Path, code: Code):
    prompt = "import math\n\ndef twice(x):\n    return 2 * x\n\ndef half(x):\n"
    test = "def check(candidate):\n    assert math.isclose(candidate(twice(3)), 3)\n"
    path = tmp_path / "he.jsonl"
    path.write_text(json.dumps({"task_id": "T/0", "prompt": prompt, "entry_point": "half", "test": test}) + "\n")
    (problem,) = read_problems(path, code)
    assert problem["id"] == "T/0"
    assert code.grade("    return x / 2\n", problem) == 1.0
    assert code.grade("    return x / 3\n", problem) == 0.0
    forged = "def twice(x): return 0\ndef half(x): return 3\ndef check(c): pass\n"
    assert code.explain(forged, {**problem, "test": test.replace("3)), 3", "4)), 4")}).startswith("wrong")


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("Here:\n```python\nx = 1\n```\nbetter:\n```python\nx = 2\n```\n", "x = 2"),
        ("<think>```python\nx = 1\n```</think>```\nx = 3\n```", "x = 3"),
        ("x = 4\n", "x = 4"),
        ("    return 5\n", "    return 5"),
        ("I cannot do that.", None),
        ("<think>x = 1", None),
        ("```python\n\n```", None),
    ],
)
def test_the_program_of_a_text(code: Code, text: str, program: str | None):
    assert code.extract(text) == program


def test_two_programs_are_one_vote_when_comments_and_spaces_differ(code: Code):
    assert code.equivalent("x = 1  # one", "x=1")
    assert not code.equivalent("x = 1", "x = 2")


@pytest.mark.parametrize(
    ("found", "same"),
    [("1 2\n3\n\n", True), ("1  2 \n3", True), ("1.0 2\n3", True), ("1 2 3", False), ("1 2\n4", False)],
)
def test_outputs_are_compared_by_lines_and_words(found: str, same: bool):
    assert same_output(found, "1 2\n3\n") is same


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("never",))


@pytest.mark.parametrize(
    "tests", ["%%%", base64.b64encode(zlib.compress(pickle.dumps(Harm()))).decode(), '[{"input": 1}]']
)
def test_tests_that_cannot_be_read_are_refused_and_nothing_is_unpickled(code: Code, tests: str, capsys: Any):
    with pytest.raises(DataError, match="public_test_cases"):
        code.check({"question": "?", "public_test_cases": tests}, where="f:1")
    assert capsys.readouterr().out == ""


CALL = {"public_test_cases": [{"input": "1", "output": "2"}], "metadata": {"func_name": "f"}}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({}, "neither `entry_point`"),
        ({"entry_point": "f"}, "neither `entry_point`"),
        ({"entry_point": "f", "test": "def check(c): pass"}, "no text `prompt`"),
        ({"entry_point": "f", "test": "assert f(1) == 2", "prompt": "def f(x):\n"}, r"defines check\(candidate\)"),
        ({"entry_point": "f", "test": "def check(c:", "prompt": "def f(x):\n"}, r"defines check\(candidate\)"),
        ({"public_test_cases": 7}, "f:1, public_test_cases: is no list"),
        ({**CALL, "public_test_cases": [{"input": "one", "output": "2"}]}, "f:1, a test of f: is not valid JSON"),
        ({**CALL, "metadata": "{"}, "f:1, metadata: is not valid JSON"),
    ],
)
def test_a_row_that_cannot_be_judged_is_refused_before_anything_is_run(code: Code, row: Any, sentence: str):
    with pytest.raises(DataError, match=sentence):
        code.check({"question": "?", **row}, where="f:1")


def test_tests_in_both_shapes_are_those_of_humaneval_only_where_they_are_whole(code: Code):
    row = {"question": "?", "entry_point": "f", **CALL}
    code.check(row)
    assert code.grade("def f(x): return x + 1", row) == 1.0


@pytest.mark.slow
def test_a_family_of_made_problems_tells_solutions_from_mutants(code: Code):
    for problem, solution, mutant in list(made_problems())[:8]:
        assert code.explain(solution, problem) == "right"
        assert code.explain(mutant, problem).startswith("wrong: AssertionError")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_164_solutions_pass_and_164_mutants_fail(code: Code):
    problems = list(made_problems())
    assert [problem["id"] for problem in map(code.adapted, (p for p, _, _ in problems))] == [
        f"Made/{n}" for n in range(164)
    ]
    with ThreadPoolExecutor(2) as pool:
        solved = list(pool.map(lambda row: code.explain(row[1], row[0]), problems))
        broken = list(pool.map(lambda row: code.explain(row[2], row[0]), problems))
    assert solved == ["right"] * 164
    assert [said for said in broken if not said.startswith("wrong: AssertionError")] == []
