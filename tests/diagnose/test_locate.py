"""The faulty step of a solution is found by its original going on, and by sums, wherever it was planted."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from burnish.data.chain import Chains, chains
from burnish.diagnose.locate import EXECUTION, METHOD, UNREAD, Ending, by_arithmetic, by_rollouts

KIND = Chains(steps=(2, 8), repeat=0, direct=0)


def planted(kind: str) -> tuple[list[str], list[int], list[str]]:
    """Wrong solutions, the numbers of their faulty steps, and the right solutions."""
    random_ = random.Random(3)
    wrong, places, right = [], [], []
    for chain in chains(KIND, 120, seed=4, distinct=True):
        steps = list(chain.derivations)
        place = random_.randrange(len(steps))
        letter, rest = steps[place][0], steps[place][1:-1]
        known, result = rest.split("=")
        value = (int(result) + random_.randrange(1, 10)) % 10
        if kind == EXECUTION:
            steps[place] = f"{letter}{known}={value};"
        else:  # another operand, computed rightly
            operand = value - int(known[0])
            steps[place] = f"{letter}{known[0]}{operand:+d}={value};"
        wrong.append("".join(steps[: place + 1]) + f"{''.join(steps[place + 1 :])}#{value}")
        places.append(place + 1)
        right.append(chain.shortest)
    return wrong, places, right


def oracle(right: Sequence[str], asked: list[int]):
    """An original that goes on rightly from a right beginning four times in five, and never from another."""

    def rollouts(parts: Sequence[tuple[int, str]]) -> list[list[Ending]]:
        asked.append(len(parts))
        found = []
        for number, before in parts:
            text = right[number].removeprefix(before)
            able = right[number].startswith(before)
            found.append([Ending(text, len(text), able and sample != 2) for sample in range(5)])
        return found

    return rollouts


@pytest.mark.parametrize("kind", [EXECUTION, METHOD])
def test_every_planted_fault_is_found_and_named(kind: str) -> None:
    wrong, places, right = planted(kind)
    asked: list[int] = []
    found = by_rollouts(wrong, oracle(right, asked), moduli=[10] * len(wrong))
    assert [fault.step for fault in found] == places
    assert [fault.kind for fault in found] == [kind] * len(wrong)
    assert sum(asked) <= sum(place + 1 for place in places)  # nothing is asked behind a fault
    for fault, solution, answer in zip(found, wrong, right, strict=True):
        assert solution.startswith(fault.before) and answer.startswith(fault.before)
        assert fault.rates[: fault.step] == (0.8,) * fault.step
        assert {fault.before + one.text for one in fault.continuations} == {answer}


def test_arithmetic_finds_every_false_sum_with_one_question_each() -> None:
    wrong, places, right = planted(EXECUTION)
    asked: list[int] = []
    found = by_arithmetic(wrong, oracle(right, asked), moduli=[10] * len(wrong))
    assert [fault.step for fault in found] == places and asked == [len(wrong)]
    assert {fault.kind for fault in found} == {EXECUTION}


def test_a_fault_that_no_step_shows_is_in_the_last_one() -> None:
    right = "a3+4=7;b7*2=4;#4"
    for judge in (by_rollouts, by_arithmetic):
        [fault] = judge(["a3+4=7;b7*2=4;#5"], oracle([right], []), moduli=[10])
        assert (fault.step, fault.steps, fault.before, fault.kind) == (3, 3, "a3+4=7;b7*2=4;", UNREAD)


def test_an_original_that_is_unsure_from_the_start_tells_nothing() -> None:
    def seldom(parts: Sequence[tuple[int, str]]) -> list[list[Ending]]:
        return [[Ending("#4", 2, right=sample == 0) for sample in range(5)] for _ in parts]

    for judge in (by_rollouts, by_arithmetic):
        [fault] = judge(["a3+4=8;#8"], seldom, moduli=[10])
        assert fault.step == 0 and not fault.continuations


@pytest.mark.parametrize("text", ["", "no step at all"])
def test_a_solution_without_steps_is_one_step(text: str) -> None:
    [fault] = by_rollouts([text], oracle(["the answer"], []))
    assert (fault.step, fault.steps, fault.before, fault.kind) == (1, 1, "", UNREAD)


def test_solutions_are_independent_of_each_other() -> None:
    wrong, _, right = planted(EXECUTION)
    together = by_rollouts(wrong[:20], oracle(right, []), moduli=[10] * 20)
    alone = [
        by_rollouts([one], oracle([answer], []), moduli=[10])[0] for one, answer in zip(wrong[:20], right, strict=False)
    ]
    assert together == alone
