"""Code that a model wrote, judged by tests behind the walls of the sandbox.

Rows of two published shapes are understood: HumanEval (`prompt`, `entry_point`, `test`) and LiveCodeBench
(`question_content`, `starter_code`, `public_test_cases`, `private_test_cases`, `metadata`).
"""

from __future__ import annotations

import ast
import base64
import binascii
import io
import pickle
import re
import zlib
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from burnish.core.errors import DataError
from burnish.core.outside import parse_json
from burnish.verify.adapter import Problem, Verifier, visible
from burnish.verify.sandbox import Sandbox
from burnish.verify.walled import Check, Execution, Limits

MAX_TESTS_BYTES = 256 << 20
"""Of the packed tests of one problem, expanded."""

EQUAL_TO_DATA = """
def listed(value):
    return [listed(part) for part in value] if isinstance(value, (list, tuple)) else value

def check(candidate):
    for arguments, wanted in DATA:
        assert listed(candidate(*arguments)) == wanted
"""


class Code(Verifier):
    """A Python program that passes all tests of a problem.

    Args:
        limits: of each run; see `burnish.verify.walled.Limits`.
        unsafe: run even where this machine cannot isolate.

    Raises:
        EngineError: no isolation here, unless `unsafe`.
    """

    name = "code"
    needs = ("question",)
    format = "Answer with one Python program in a ```python block."

    def __init__(self, limits: Limits | None = None, *, unsafe: bool = False) -> None:
        self._sandbox = Sandbox(limits, unsafe=unsafe)

    def adapted(self, row: Problem) -> dict[str, Any]:
        problem = super().adapted(row)
        for name, other in (("question", "question_content"), ("id", "question_id")):
            if name not in problem and other in problem:
                problem[name] = problem[other]
        return problem

    def check(self, problem: Problem, *, where: str = "problem") -> None:
        super().check(problem, where=where)
        if _asks_a_function(problem):
            if not isinstance(problem.get("prompt"), str) or not _has_check(problem["test"]):
                raise DataError(
                    "has `entry_point`, but no text `prompt` with a `test` that defines check(candidate)",
                    where=where,
                    fix="use a file in the shape of HumanEval",
                )
            return
        if not any(problem.get(name) for name in ("public_test_cases", "private_test_cases")):
            raise DataError(
                "has neither `entry_point` and `test` nor `public_test_cases`, so no program can be judged",
                where=where,
                fix="use a file in the shape of HumanEval or LiveCodeBench",
            )
        if _function(problem, where=where):
            _data(problem, where=where)
        else:
            cases(problem, where=where)

    def prompt(self, problem: Problem) -> str:
        starter = problem.get("starter_code")
        question = str(problem["question"]).rstrip()
        if starter:
            question += f"\n\nStart from this code:\n```python\n{starter}\n```"
        return f"{question}\n\n{self.format}"

    def extract(self, text: str) -> str | None:
        """The last fenced block after the reasoning; or the whole text where it is Python, or a function's body."""
        seen = visible(text)
        if seen is None:
            return None
        blocks = _FENCED.findall(seen)
        found = blocks[-1] if blocks else seen
        is_code = blocks or _parsed(seen) is not None or _parsed(f"def f():\n{seen}") is not None
        return found.strip("\n") if is_code and found.strip() else None

    def equivalent(self, first: str, second: str) -> bool:
        """Whether two programs differ in comments and spaces alone."""
        one, other = _parsed(first), _parsed(second)
        return first == second or (one is not None and one == other)

    def _grade(self, answer: str, problem: Problem) -> float:
        return float(self.explain(answer, problem) == "right")

    def explain(self, answer: str, problem: Problem) -> str:
        """ "right", or in a few words why not: what the judge said, or the limit that was met."""
        if _asks_a_function(problem):
            return _said(self._humaneval(answer, problem))
        if name := _function(problem):
            return _said(self._sandbox.run(answer, check=Check(name, EQUAL_TO_DATA, data=_data(problem))))
        tests = cases(problem)
        for number, (given, wanted) in enumerate(tests, start=1):
            outcome = self._sandbox.run(answer, stdin=given)
            if outcome.end != "done" or outcome.code != 0 or not same_output(outcome.output, wanted):
                return f"wrong: test {number} of {len(tests)}: {_ended(outcome)}"
        return "right"

    def _humaneval(self, answer: str, problem: Problem) -> Execution:
        """The prompt is a function without body; the answer is a body, or defines the function again."""
        name, prompt = str(problem["entry_point"]), str(problem["prompt"])
        before = prompt if _parsed(prompt) is not None else f"{prompt.rstrip()}\n    pass\n"
        again = re.search(rf"^(async )?def {re.escape(name)}\b|^{re.escape(name)}\s*=", answer, re.MULTILINE)
        program = f"{before}\n\n{answer}" if again else prompt + answer
        return self._sandbox.run(program, check=Check(name, str(problem["test"]), before=before))


_FENCED = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\d?\n(.*?)```", re.DOTALL | re.IGNORECASE)


def _parsed(text: str) -> str | None:
    """The syntax of a program, or None where it is none."""
    try:
        return ast.dump(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _said(outcome: Execution) -> str:
    return outcome.verdict or f"wrong: {_ended(outcome)}"


def _ended(outcome: Execution) -> str:
    limits = {"time": "out of time", "output": "too much output"}
    if outcome.end != "done":
        return limits[outcome.end]
    last = outcome.errors.strip().splitlines()[-1:] or [f"exit status {outcome.code}"]
    return last[0] if outcome.code else "another output"


def same_output(found: str, wanted: str) -> bool:
    """The same lines, spaces at their ends and empty lines at the end aside; words that are numbers by their value."""
    one, other = ([line.split() for line in text.rstrip().split("\n")] for text in (found, wanted))
    return len(one) == len(other) and all(
        len(mine) == len(yours) and all(map(_same_word, mine, yours)) for mine, yours in zip(one, other, strict=True)
    )


def _same_word(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return len(one) < 100 and Decimal(one) == Decimal(other)
    except InvalidOperation:
        return False


def cases(problem: Problem, *, where: str = "problem") -> list[tuple[str, str]]:
    """Input and expected output of every test of a LiveCodeBench row, the packed private ones included.

    Raises:
        DataError: tests that cannot be read.
    """
    found: list[tuple[str, str]] = []
    for field in ("public_test_cases", "private_test_cases"):
        rows = problem.get(field) or []
        if isinstance(rows, str):
            text = rows if rows.lstrip().startswith("[") else _unpacked(rows, f"{where}, {field}")
            rows = parse_json(text, where=f"{where}, {field}", error=DataError)
        try:
            found += [(str(row["input"]), str(row["output"])) for row in rows]
        except (TypeError, KeyError):
            raise DataError("is no list of {input, output}", where=f"{where}, {field}") from None
    if not found:
        raise DataError("has no tests", where=where)
    return found


def _unpacked(text: str, where: str) -> str:
    """Published private tests are base64 of zlib of a pickled string of JSON; nothing but a string is unpickled."""
    try:
        stream = zlib.decompressobj()
        content = stream.decompress(base64.b64decode(text, validate=True), MAX_TESTS_BYTES)
        if stream.unconsumed_tail:
            raise DataError(f"expands to more than {MAX_TESTS_BYTES:,} bytes", where=where)
        value = _OnlyPlain(io.BytesIO(content)).load()
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, ValueError, IndexError) as cause:
        raise DataError(f"is neither JSON nor packed tests ({cause})", where=where) from None
    if not isinstance(value, str):
        raise DataError("holds no text", where=where)
    return value


class _OnlyPlain(pickle.Unpickler):
    """Strings and numbers; anything that names a class or a function is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"names {module_name}.{global_name}")


def _asks_a_function(problem: Problem) -> bool:
    """Whether a row is in the shape of HumanEval."""
    return bool(problem.get("entry_point")) and bool(problem.get("test"))


def _has_check(test: object) -> bool:
    return isinstance(test, str) and _parsed(test) is not None and re.search(r"^def check\(", test, re.M) is not None


def _data(problem: Problem, *, where: str = "problem") -> list[list[Any]]:
    """Arguments, one JSON value a line, and result of every test that calls a function."""

    def read(text: str) -> Any:
        return parse_json(text, where=f"{where}, a test of {_function(problem)}", error=DataError)

    return [
        [[read(line) for line in given.splitlines()], read(wanted)] for given, wanted in cases(problem, where=where)
    ]


def _function(problem: Problem, *, where: str = "problem") -> str | None:
    """The name of the function that the tests call, or None where they are inputs and outputs of a script."""
    facts = problem.get("metadata") or {}
    facts = parse_json(facts, where=f"{where}, metadata", error=DataError) if isinstance(facts, str) else facts
    return facts.get("func_name") if isinstance(facts, dict) else None
