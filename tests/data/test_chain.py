"""Chains are right, the same by seed, kept apart by question, and written with the repeats that were asked for."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.cli import main
from burnish.core.errors import DataError, SettingsError
from burnish.data.chain import Chains, chain_rows, chains
from burnish.data.read import read_rows
from burnish.verify import verifier
from burnish.verify.chains import solved, steps


@given(modulus=st.integers(3, 100), seed=st.integers(0, 10**6), high=st.integers(1, 26), slips=st.floats(0, 1))
def test_every_chain_is_right(modulus: int, seed: int, high: int, slips: float):
    for chain in chains(Chains(modulus=modulus, steps=(1, high), slips=slips), 3, seed=seed):
        assert int(chain.answer) == solved(chain.question, modulus)
        assert 0 <= int(chain.answer) < modulus
        found = steps(chain.solution, modulus)
        assert found.rest == ""
        assert found.repeats == chain.num_repeats
        assert found.first + found.repeats - found.right == chain.num_slips
        shortest = steps(chain.shortest, modulus)
        assert (shortest.first, shortest.right, shortest.repeats) == (len(chain.derivations), len(chain.derivations), 0)


def test_a_row_depends_on_the_seed_and_its_number_alone():
    few, many = (list(chain_rows(Chains(), number, seed=7)) for number in (5, 50))
    assert few == many[:5]
    assert few != list(chain_rows(Chains(), 5, seed=8))


def test_the_first_chains_of_a_seed_never_change():
    kinds = Chains(steps=(3, 3), repeat=1, again=0, direct=0)
    assert [chain.question for chain in chains(kinds, 3, seed=0)] == ["6a*3b+3c+5", "4a-5b-5c*3", "8a+1b*4c-4"]


def test_questions_are_held_out_and_distinct():
    kinds = Chains(steps=(1, 2), modulus=5)
    train = {chain.question for chain in chains(kinds, 100, seed=0)}
    test = [chain.question for chain in chains(kinds, 40, seed=1, apart_from=train, distinct=True)]
    assert len(set(test)) == 40
    assert train.isdisjoint(test)


def test_an_exhausted_kind_of_chain_is_said():
    with pytest.raises(DataError, match="only 24 chains were found whose question is new"):
        list(chains(Chains(steps=(1, 1), modulus=3, operations="+-", largest=4), 25, seed=0, distinct=True))


def test_repeats_have_the_chances_that_were_asked_for():
    kinds = Chains(steps=(10, 10), repeat=0.3, again=0.6, most_repeats=100, direct=0)
    repeats = [Counter(re.findall("W([a-z])", chain.solution)) for chain in chains(kinds, 2000, seed=3)]
    runs = [counts[letter] for counts in repeats for letter in "abcdefghij"]
    begun = [run for run in runs if run]
    assert len(runs) == 20_000
    assert abs(len(begun) / len(runs) - 0.3) < 4 * (0.3 * 0.7 / len(runs)) ** 0.5
    going_on = sum(begun) - len(begun)
    assert abs(going_on / sum(begun) - 0.6) < 4 * (0.6 * 0.4 / sum(begun)) ** 0.5


def test_direct_answers_are_as_frequent_as_asked():
    rows = list(chain_rows(Chains(direct=0.25), 4000, seed=0))
    share = sum(row["solution"].startswith("#") for row in rows) / len(rows)
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / len(rows)) ** 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modulus": 2}, "modulus is 2"),
        ({"steps": (0, 3)}, "steps are 0 to 3"),
        ({"steps": (1, 27)}, "1 to 26 have letters"),
        ({"operations": "+/"}, "only [+] - [*] are known"),
        ({"largest": 1}, "largest is 1"),
        ({"repeat": 1.5}, "repeat is 1.5"),
        ({"slips": 0.1, "most_repeats": 0}, "slips need"),
    ],
)
def test_impossible_chains_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(SettingsError, match=message):
        Chains(**changes)


def test_the_verifier_reads_the_number_at_the_end():
    chain = verifier("chain")
    problem = {"question": "3a+4b*2", "answer": "4", "modulus": 10}
    assert chain.score("a3+4=7;b7*2=4;#4", problem) == 1.0
    assert chain.score("a3+4=7;b7*2=4;#5", problem) == 0.0
    assert chain.extract("#4 and more") is None
    assert chain.extract("a3+4=7;") is None
    assert verifier("chain", from_question=True).score("#4", {**problem, "answer": "9"}) == 1.0


def test_the_command_writes_rows_that_train_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, again = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    main(["data", "chain", "-n", "20", "--steps", "2-3", "--seed", "5", "-o", str(out)])
    assert "20 chains" in capsys.readouterr().out
    main(["data", "chain", "-n", "20", "--steps", "2-3", "--seed", "5", "-o", str(again)])
    assert out.read_bytes() == again.read_bytes()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert read_rows(out)[0] == rows[0]["messages"]
    assert all(verifier("chain").score(row["solution"], row) == 1.0 for row in rows)
    held = tmp_path / "c.jsonl"
    main(["data", "chain", "-n", "20", "--steps", "2-3", "--distinct", "--apart-from", str(out), "-o", str(held)])
    assert not {row["question"] for row in rows} & {
        json.loads(line)["question"] for line in held.read_text().splitlines()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "x"], "--steps: is 'x'"),
        (["-n", "0"], "--number: is 0"),
        (["--apart-from", "none.jsonl"], "none.jsonl: no such file"),
        (["--modulus", "1"], "modulus is 1"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
):
    with pytest.raises(SystemExit):
        main(["data", "chain", "-o", str(tmp_path / "o.jsonl"), *options])
    assert message in capsys.readouterr().err
