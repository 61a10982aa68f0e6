"""Tables are read again by other code; the same by seed, and what cannot be drawn is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.cli import main
from burnish.core.errors import DataError, SettingsError
from burnish.data.table import Tables, table_rows
from burnish.verify import verifier


def read_grid(grid: str, cell: str) -> int:
    """The digit of a cell, counted out in the grid."""
    columns, *lines = grid.split("/")
    assert len(set(columns)) == len(columns) and len({line[0] for line in lines}) == len(lines)
    line = next(line for line in lines if line[0] == cell[0])
    return int(line[1 + columns.index(cell[1])])


def read_description(description: str, cell: str) -> int:
    found = re.findall(rf"{cell}(\d)", description)
    assert len(found) == 1
    return int(found[0])


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 13), columns=st.integers(1, 13), data=st.data())
def test_grid_description_and_solution_say_the_same(seed: int, rows: int, columns: int, data: Any):
    cells = data.draw(st.integers(1, min(4, rows * columns)))
    for row in table_rows(Tables(rows, columns, cells), 2, seed=seed):
        asked = row["asked"].split("+")
        digits = [read_grid(row["grid"], cell) for cell in asked]
        assert digits == [read_description(row["description"], cell) for cell in asked]
        assert len(set(asked)) == cells and row["answer"] == str(sum(digits) % 10)
        steps = row["solution"].split(";")
        assert steps[:cells] == [f"{cell}{digit}" for cell, digit in zip(asked, digits, strict=True)]
        assert steps[cells:-1] == [
            f"{sum(digits[:n]) % 10}+{digits[n]}={sum(digits[: n + 1]) % 10}" for n in range(1, cells)
        ]
        assert verifier("chain").score(row["solution"], row) == 1
        assert row["question"] == f"{row['grid']}?{row['asked']}" == row["messages"][0]["content"]


def test_a_row_depends_on_the_seed_and_its_number_alone():
    few, many = (list(table_rows(Tables(), number, seed=7)) for number in (5, 50))
    assert few == many[:5]
    assert few != list(table_rows(Tables(), 5, seed=8))


def test_the_first_table_of_a_seed_never_changes():
    (row,) = table_rows(Tables(), 1, seed=0)
    assert (row["question"], row["solution"]) == ("nop/a421/b059/c551?an+cp", "an4;cp1;4+1=5;#5")


def test_an_exhausted_kind_of_table_is_said():
    with pytest.raises(DataError, match="only 10 tables were found whose question is new"):
        list(table_rows(Tables(1, 1, 1), 11, seed=0, distinct=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 14}, "rows are 14, but 1 to 13 have letters"),
        ({"columns": 0}, "columns are 0, but 1 to 13 have letters"),
        ({"cells": 10}, "cells are 10, but the grid has 9"),
        ({"direct": 1.5}, "direct is 1.5, which is no chance"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(SettingsError, match=message):
        Tables(**changes)


def test_the_command_writes_rows_apart_from_another_file(tmp_path: Path):
    kind = ["--rows", "1", "--columns", "2", "--cells", "1"]
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    main(["data", "table", "-n", "100", *kind, "--distinct", "-o", str(first)])
    main(["data", "table", "-n", "50", *kind, "--seed", "1", "--apart-from", str(first), "-o", str(second)])
    rows, others = ([json.loads(line) for line in file.read_text().splitlines()] for file in (first, second))
    assert len({row["question"] for row in rows}) == 100
    assert {row["question"] for row in rows}.isdisjoint(row["question"] for row in others)
