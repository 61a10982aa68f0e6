"""`burnish data`: problems whose every answer can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def chain(
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    number: Annotated[int, Parameter(name=["--number", "-n"])] = 1000,
    seed: int = 0,
    modulus: int = 10,
    steps: str = "1-8",
    operations: str = "+-*",
    largest: int | None = None,
    repeat: float = 0.4,
    again: float = 0.5,
    most_repeats: int = 3,
    direct: float = 0.05,
    slips: float = 0.0,
    distinct: Annotated[bool, Parameter(negative="")] = False,
    apart_from: Path | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write verifiable chains, `3a+4b*2` with solutions such as `a3+4=7;b7*2=4;#4`, one JSON row a line.

    A row has `question`, `answer` and `solution` for graders and `messages` for `burnish train`.

    Parameters
    ----------
    out:
        The .jsonl file.
    number:
        How many.
    seed:
        The same seed and settings write the same bytes.
    modulus:
        Of all results.
    steps:
        Fewest and most operations: 4, or 1-8.
    operations:
        Which are drawn from.
    largest:
        Operand [default: modulus - 1].
    repeat:
        Chance that a step is repeated as a redundant check.
    again:
        Chance that a repeated step is repeated once more.
    most_repeats:
        Of one step.
    direct:
        Chance of an answer without steps.
    slips:
        Chance that a step's first derivation is wrong and its repeat corrects it.
    distinct:
        No question twice.
    apart_from:
        A file of chains none of whose questions may occur: hold out by question, not by seed.
    overwrite:
        Replace the file.
    """
    from burnish.core.errors import SettingsError
    from burnish.data.chain import Chains, chain_rows, questions_of

    _may_write(out, number, [apart_from], overwrite=overwrite)
    low, _, high = steps.partition("-")
    if not (low.isdecimal() and (high or low).isdecimal()):
        raise SettingsError(f"is {steps!r}", where="--steps", fix="write 4, or 1-8")
    kinds = Chains(
        modulus=modulus,
        steps=(int(low), int(high or low)),
        operations=operations,
        largest=largest,
        repeat=repeat,
        again=again,
        most_repeats=most_repeats,
        direct=direct,
        slips=slips,
    )
    held_out = questions_of(apart_from) if apart_from else set()
    rows = list(chain_rows(kinds, number, seed=seed, apart_from=held_out, distinct=distinct))
    _write(out, rows)
    questions = len({row["question"] for row in rows})
    letters = sum(len(row["solution"]) for row in rows) / number
    print(f"{out}: {number:,} chains, {questions:,} different questions, {letters:.1f} letters a solution")


def gym(
    *,
    task: list[str],
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    number: Annotated[int, Parameter(name=["--number", "-n"])] = 200,
    seed: int = 0,
    apart_from: list[Path] | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write fresh problems of reasoning-gym, which `--verifier reasoning-gym` grades, one JSON row a line.

    Parameters
    ----------
    task:
        Kind of problem, such as countdown; give it several times for several, which take turns.
    out:
        The .jsonl file.
    number:
        How many, all different.
    seed:
        The same seed and tasks write the same problems.
    apart_from:
        A file none of whose questions may occur; give it several times for several.
    overwrite:
        Replace the file.
    """
    from burnish.data.chain import questions_of
    from burnish.data.gym import gym_rows

    _may_write(out, number, apart_from or [], overwrite=overwrite)
    held_out = {question for path in apart_from or () for question in questions_of(path)}
    rows = list(gym_rows(task, number, seed=seed, apart_from=held_out))
    _write(out, rows)
    print(f"{out}: {number:,} problems of {', '.join(task)}")


def _may_write(out: Path, number: int, read: Sequence[Path | None], *, overwrite: bool) -> None:
    from burnish.core.apart import check_apart
    from burnish.core.checkpoint.durable import check_place
    from burnish.core.errors import OutputError, SettingsError

    check_apart([out], read)
    if out.exists() and not overwrite:
        raise OutputError("exists", where=str(out), fix="give --overwrite, or another name")
    if number < 1:
        raise SettingsError(f"is {number}, but at least one problem is needed", where="--number")
    check_place(out)


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    from burnish.core.checkpoint.durable import write_atomically
    from burnish.data.chain import json_lines

    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json_lines(iter(rows)))
