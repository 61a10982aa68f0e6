"""math-verify behind processes with a clock."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("math_verify")

from hostile import harmful

from burnish.verify import Mathematics
from burnish.verify.workers import Workers


@pytest.fixture(scope="module")
def maths() -> Iterator[Mathematics]:
    with Mathematics(processes=1, seconds=60) as maths:
        yield maths


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac12", "0.5"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
        ("p - q", "-q+p"),
        (r"\text{Evelyn}", "Evelyn"),
        ("$70$", "70"),
        ("5", "x=5"),
    ],
)
def test_equal_values_are_right(maths: Mathematics, gold: str, answer: str):
    assert maths.grade(answer, {"answer": gold}) == 1.0
    assert maths.equivalent(gold, answer)
    assert maths.equivalent(answer, gold)


@pytest.mark.parametrize(("gold", "answer"), [("70", "71"), ("p-q", "p+q"), ("1", ""), ("1", "one or two")])
def test_other_values_are_wrong(maths: Mathematics, gold: str, answer: str):
    assert maths.grade(answer, {"answer": gold}) == 0.0
    assert not maths.equivalent(gold, answer)


def test_nothing_equals_an_empty_answer(maths: Mathematics):
    assert not maths.equivalent("", "")
    assert not maths.equivalent("$$", "$$")


def test_an_answer_is_never_run(maths: Mathematics, tmp_path: Path):
    """SymPy, which reads formulas below math-verify, evaluates what it is given."""
    canary = tmp_path / "canary"
    for text in harmful(canary):
        for answer in (text, rf"\text{{{text}}}", f"1+{text}"):
            assert maths.grade(answer, {"answer": r"\frac12"}) == 0.0
            assert maths.grade("0.5", {"answer": answer}) == 0.0
    assert not canary.exists()


def test_many_threads_ask_at_once(maths: Mathematics):
    wrong: list[int] = []

    def ask(number: int) -> None:
        if not maths.equivalent(f"{number}+1", str(number + 1)) or maths.equivalent(f"{number}+1", str(number)):
            wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_answer_that_cannot_be_computed_is_wrong_and_counted():
    with Mathematics(processes=1, seconds=0.5) as maths:
        assert maths.grade("9^{9^{9^{9}}}!", {"answer": "1"}) == 0.0
        assert sum(maths.failures.values()) == 1


@pytest.mark.parametrize(
    ("question", "failure"), [({"sleep": 60}, "timeout"), ({"spin": True}, "timeout"), ({"exit": 3}, "crash")]
)
def test_a_process_that_hangs_or_dies_is_counted_and_replaced(
    question: dict[str, object], failure: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]]))
    workers = Workers("verify_worker", number=1, seconds=0.3)
    assert workers.ask(question) == (None, failure)
    assert workers.failures == {failure: 1}
    workers.seconds = 60
    answer, trouble = workers.ask({"echo": 7})
    assert (answer["echo"], trouble) == (7, None)
    workers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(answer["pid"], 0)
