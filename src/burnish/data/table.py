"""Table reading: digits in a grid, and a question about some of its cells; with a description that says every cell.

    grid         nop/a374/b921                        a line of columns, then every row with its letter
    description  an3ao7ap4/bn9bo2bp1                  the same: row, column, digit
    question     nop/a374/b921?bo+ap                  the sum of two cells, modulo 10
    solution     bo2;ap4;2+4=6;#6                     each cell, the sum so far, the answer

Letters are in order, so a cell of a grid of one size has one place. A description is read by copying, a grid by
counting, and both questions have one solution: phases of a curriculum show one, both, or the other. A row depends on
the seed and its own number alone.

Source: the test that stands for images and their captions in "Infi-MMR", 2025, arXiv:2505.23091; the form is ours.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from burnish.core.errors import refuse
from burnish.data.draws import draws

ROWS, COLUMNS = string.ascii_lowercase[:13], string.ascii_lowercase[13:]


@dataclass(frozen=True)
class Tables:
    """What tables are made of.

    Attributes:
        rows: of the grid.
        columns: of the grid.
        cells: that a question adds, different ones.
        direct: chance of an answer without steps.
    """

    rows: int = 3
    columns: int = 3
    cells: int = 2
    direct: float = 0.0

    def __post_init__(self) -> None:
        wrong = {
            f"rows are {self.rows}, but 1 to {len(ROWS)} have letters": not 1 <= self.rows <= len(ROWS),
            f"columns are {self.columns}, but 1 to {len(COLUMNS)} have letters": not 1 <= self.columns <= len(COLUMNS),
            f"cells are {self.cells}, but the grid has {self.rows * self.columns}": not (
                1 <= self.cells <= self.rows * self.columns
            ),
            f"direct is {self.direct}, which is no chance from 0 to 1": not 0 <= self.direct <= 1,
        }
        refuse(wrong, where="tables")


@dataclass(frozen=True)
class DigitTable:
    """One problem with its worked solution.

    Attributes:
        grid: "nop/a374/b921".
        description: "an3ao7ap4/bn9bo2bp1".
        asked: "bo+ap".
        answer: a digit.
        solution: what a model is to write.
    """

    grid: str
    description: str
    asked: str
    answer: str
    solution: str

    @property
    def question(self) -> str:
        """Of the grid alone."""
        return f"{self.grid}?{self.asked}"

    def row(self, name: str) -> dict[str, Any]:
        """As a line of a file: a problem for `burnish.verify`, and `messages` for `burnish train`."""
        messages = [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.solution}]
        return {"id": name, "question": self.question} | asdict(self) | {"messages": messages}


def table(kinds: Tables, random_: random.Random) -> DigitTable:
    """Draws one table and a question about it."""
    rows, columns = ROWS[: kinds.rows], COLUMNS[: kinds.columns]
    digits = {f"{row}{column}": random_.randrange(10) for row in rows for column in columns}
    asked = random_.sample(list(digits), kinds.cells)
    steps, value = [f"{cell}{digits[cell]};" for cell in asked], digits[asked[0]]
    for cell in asked[1:]:
        total = (value + digits[cell]) % 10
        steps.append(f"{value}+{digits[cell]}={total};")
        value = total
    worked = "" if random_.random() < kinds.direct else "".join(steps)
    return DigitTable(
        grid="/".join([columns, *(row + "".join(str(digits[row + column]) for column in columns) for row in rows)]),
        description="/".join("".join(f"{row}{column}{digits[row + column]}" for column in columns) for row in rows),
        asked="+".join(asked),
        answer=str(value),
        solution=f"{worked}#{value}",
    )


def table_rows(
    kinds: Tables,
    number: int,
    *,
    seed: int,
    apart_from: frozenset[str] | set[str] = frozenset(),
    distinct: bool = False,
) -> Iterator[dict[str, Any]]:
    """Draws tables as rows; see `burnish.data.draws.draws` and `DigitTable.row`."""
    how: dict[str, Any] = {"seed": seed, "apart_from": apart_from, "distinct": distinct}
    drawn = draws(lambda random_: table(kinds, random_), number, kind="table", fix="ask for fewer", **how)
    for index, one in enumerate(drawn):
        yield one.row(f"table-{seed}-{index}")
