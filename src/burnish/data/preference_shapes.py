"""The shapes in which preferences are published, turned into rows of `prompt`, `chosen`, `rejected` without editing.

    chosen, rejected                    HH, UltraFeedback binarized, RewardBench, argilla, Intel Orca; the prompt beside
                                        them under one of `PROMPT_NAMES`, or inside the answers, or both
    answers: [{answer, rank}]           Nectar: every two answers of unlike rank
    completions: [{response, overall_score}], or generations with ratings         UltraFeedback, distilabel
    history, human_ref_A, human_ref_B, labels                                     SHP
    response_0, response_1, better_response_id                                    PKU-SafeRLHF
    response_1, response_2, preference_strength; or response1, response2, overall_preference     HelpSteer2, HelpSteer3
    prompt, response, helpfulness       HelpSteer: answers of one prompt stand in rows that follow each other
    conversation_a, conversation_b, winner                                        Chatbot Arena

A prompt that is also at the start of both answers is taken out of them, a text prompt before answers in messages
becomes a message, and {from, value} becomes {role, content}. Ties are no preference, and are counted.

Beside any pair, `votes` [for, against] of several annotators becomes `label_probability` (for + 1/2) / (all + 1), the
mean of Jeffreys' posterior, where the row has no such column of its own; two that contradict each other are an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from typing import Any

from burnish.core.errors import DataError, SettingsError, nearest

Row = dict[str, Any]
Found = list[tuple[Any, Any]]
"""(better, worse) answers of a row."""

PROMPT_NAMES = ("prompt", "question", "instruction", "input", "query", "context", "history")
CHOSEN_NAMES, REJECTED_NAMES = ("chosen", "chosen_response"), ("rejected", "rejected_response")
RIGHT = "label_probability"
"""Column: the probability of a pair that its label is right, a soft label."""
VOTES = "votes"
"""Column: how many annotators were [for, against] the label."""
ANNOTATOR = "annotator"
"""Column: who labelled the pair."""
PAIR_COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "margin",
    RIGHT,
    VOTES,
    ANNOTATOR,
    "tools",
    "chat_template_kwargs",
    "system",
)
"""What is read of a pair."""

KNOWN_SUFFIXES = ("rating", "model", "score", "id", "source", "status", "subset")
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant"}
TIE = "no answer is preferred"


@dataclass
class Shaped:
    """Rows as pairs.

    Attributes:
        rows, numbers: the pairs, and of each the number of the row it is from.
        dropped: {reason: count} of rows without a preference.
        unread: columns whose text nobody reads, in pairs that have no prompt beside their answers.
    """

    rows: list[Row] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def parse_columns(text: str | None) -> dict[str, str]:
    """ "prompt=question,chosen=better" as {"prompt": "question", "chosen": "better"}.

    Raises:
        SettingsError: another form, or a name that is no column of a pair.
    """
    found: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not (ours and equals and theirs) or ours not in PAIR_COLUMNS:
            raise SettingsError(
                f"{part!r} names no column", where="columns", fix="write prompt=THEIRS,chosen=THEIRS,rejected=THEIRS"
            )
        found[ours] = theirs
    return found


def shaped(
    rows: Sequence[Row], numbers: Sequence[int], source: str, columns: Mapping[str, str] | None = None
) -> Shaped:
    """The rows of a file as pairs.

    Args:
        rows: as they were read.
        numbers: of each row.
        source: the file's name in messages.
        columns: {name of a pair's column: its name in the file}, before anything is guessed.

    Raises:
        DataError: a named column is missing, or a name that looks like a misspelt one.
    """
    found = Shaped()
    for number, better_first, row in _judged(rows, numbers, source, dict(columns or {})):
        if better_first is None:
            found.rows.append(row)
            found.numbers.append(number)
            continue
        if not better_first:
            found.dropped[TIE] = found.dropped.get(TIE, 0) + 1
        for better, worse in better_first:
            found.rows.append(_one_prompt(row | {"chosen": better, "rejected": worse}))
            found.numbers.append(number)
    found.rows = [_voted(row, f"{source}:{number}") for row, number in zip(found.rows, found.numbers, strict=True)]
    alone = [row for row in found.rows[:100] if row.get("prompt") is None]
    texts = {name for row in alone for name, value in row.items() if isinstance(value, str)}
    found.unread = sorted(name for name in texts - set(PAIR_COLUMNS) if not name.endswith(KNOWN_SUFFIXES))
    return found


def is_shape(row: Row) -> bool:
    """Whether a row holds preferences in one of the shapes."""
    return (
        bool(_first(row, CHOSEN_NAMES) and _first(row, REJECTED_NAMES)) or _reader(row) is not None or _is_graded(row)
    )


def _judged(
    rows: Sequence[Row], numbers: Sequence[int], source: str, columns: dict[str, str]
) -> Iterator[tuple[int, Found | None, Row]]:
    """(number, answers better first, the rest of the row); None for a row of no shape, which the checks name."""
    placed = [(number, _renamed(row, columns, f"{source}:{number}")) for row, number in zip(rows, numbers, strict=True)]
    if placed and _is_graded(placed[0][1]):
        for _, same in groupby(placed, key=lambda item: repr(item[1].get("prompt"))):
            answers = list(same)
            graded = [(row.get("response"), row.get("helpfulness")) for _, row in answers]
            yield answers[0][0], _better_first(graded), {"prompt": answers[0][1].get("prompt")}
        return
    for number, row in placed:
        reader = _reader(row)
        if reader is not None and not {"chosen", "rejected"} <= row.keys():
            names, read = reader
            yield number, read(row), _named_prompt({key: row[key] for key in row if key not in names})
        elif row.get("chosen") is not None and row.get("rejected") is not None:
            prompted = _named_prompt(row)
            _check_spelling(prompted, f"{source}:{number}")
            yield number, [(prompted["chosen"], prompted["rejected"])], prompted
        else:
            yield number, None, row


def _renamed(row: Row, columns: dict[str, str], where: str) -> Row:
    """A row with the columns that are named under our names."""
    for ours, theirs in columns.items():
        if theirs not in row:
            guess = nearest(theirs, list(row))
            raise DataError(f"has no column {theirs!r}", where=where, fix=f"did you mean {guess!r}?" if guess else None)
        row = {ours if key == theirs else key: value for key, value in row.items() if key != ours or key == theirs}
    for ours, names in (("chosen", CHOSEN_NAMES), ("rejected", REJECTED_NAMES)):
        theirs = _first(row, names)
        if theirs is not None and theirs != ours:
            row = {ours if key == theirs else key: value for key, value in row.items()}
    return row


def _voted(row: Row, where: str) -> Row:
    """A row with the soft label of its votes, if it has none of its own."""
    votes, right = row.get(VOTES), row.get(RIGHT)
    if votes is None:
        return row
    counts = isinstance(votes, Sequence) and len(votes) == 2 and all(type(n) is int and n >= 0 for n in votes)
    if not counts or sum(votes) == 0:
        raise DataError(f"votes are {votes!r}", where=where, fix="write [for, against], of at least one annotator")
    if right is None:
        return row | {RIGHT: (votes[0] + 0.5) / (sum(votes) + 1)}
    if isinstance(right, int | float) and (votes[0] - votes[1]) * (right - 0.5) < 0:
        raise DataError(
            f"votes are {votes!r}, [for, against] the label, but {RIGHT} is {right:g}",
            where=where,
            fix=f"remove the column that is wrong; votes alone become the {RIGHT}",
        )
    return row


def _first(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _named_prompt(row: Row) -> Row:
    """The prompt under its name, a system message before it."""
    name = _first(row, PROMPT_NAMES)
    row = dict(row)
    if name is None:
        row.pop("prompt", None)  # null
        return row
    prompt = row.pop(name)
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        if isinstance(prompt, str) and isinstance(row.get("chosen"), str):
            prompt = f"{system.strip()}\n\n{prompt}"
        else:
            said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            prompt = [{"role": "system", "content": system}, *said]
        del row["system"]
    return {"prompt": prompt} | row


def _check_spelling(row: Row, where: str) -> None:
    if row.get("prompt") is not None:
        return
    for name, value in row.items():
        guess = (
            nearest(name, list(PROMPT_NAMES)) if isinstance(value, str | list) and name not in PAIR_COLUMNS else None
        )
        if guess is not None:
            raise DataError(
                f"has a column {name!r} and no prompt", where=where, fix=f"rename it, or pass --columns prompt={name}"
            )


def _one_prompt(row: Row) -> Row:
    """The prompt beside the answers only, and in their form."""
    row = {key: _messages(value) if key in ("prompt", "chosen", "rejected") else value for key, value in row.items()}
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None:
        return row
    if isinstance(chosen, list) and isinstance(rejected, list) and isinstance(prompt, str):
        prompt = _as_messages(prompt, chosen, rejected)
    kinds = {type(prompt), type(chosen), type(rejected)}
    if kinds in ({str}, {list}) and prompt:
        size = len(prompt)
        inside = chosen[:size] == prompt == rejected[:size] and len(chosen) > size and len(rejected) > size
        # a text prompt of a few letters may begin an answer by chance
        if inside and (isinstance(prompt, list) or len(prompt.strip()) >= 8):
            chosen, rejected = chosen[size:], rejected[size:]
    return row | {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _as_messages(prompt: str, chosen: list[Row], rejected: list[Row]) -> list[Row]:
    """A text prompt as messages: those that both answers begin with where these end with it, else one of the user."""
    shared = 0
    for first, second in zip(chosen, rejected, strict=False):
        if first != second or (first.get("role") == "assistant" and first.get("content") != prompt and shared == 0):
            break
        shared += 1
    leading = chosen[: min(shared, len(chosen) - 1, len(rejected) - 1)]
    if leading and str(leading[-1].get("content")).strip() == prompt.strip():
        return leading
    return [{"role": "user", "content": prompt}]


def _messages(value: Any) -> Any:
    """{from, value} as {role, content}."""
    if not isinstance(value, list) or not all(
        isinstance(part, dict) and {"from", "value"} <= part.keys() for part in value
    ):
        return value
    return [{"role": ROLES.get(part["from"], part["from"]), "content": part["value"]} for part in value]


# -- shapes: their columns, and (better, worse) of a row -------------------------------------------------------------


def _better_first(graded: Sequence[tuple[Any, Any]]) -> Found:
    """Every two answers of unlike grade, the one with the larger first; answers without a grade are left out."""
    usable = [(answer, grade) for answer, grade in graded if answer is not None and isinstance(grade, int | float)]
    return [(a, b) if x > y else (b, a) for (a, x), (b, y) in combinations(usable, 2) if x != y]


def _of_two(first: str, second: str, prefers: Callable[[Row], float | None]) -> Callable[[Row], Found]:
    """The two answers by the sign of a preference: above 0 for the first."""

    def read(row: Row) -> Found:
        sign = prefers(row) or 0
        return [(row[first], row[second])] if sign > 0 else [(row[second], row[first])] if sign < 0 else []

    return read


def _winner(row: Row) -> float:
    return {"model_a": 1.0, "model_b": -1.0}.get(str(row["winner"]), 0.0)


def _completions(row: Row) -> Found:
    return _better_first([(part.get("response"), _number(part.get("overall_score"))) for part in row["completions"]])


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


SHAPES: dict[tuple[str, ...], Callable[[Row], Found]] = {
    ("answers",): lambda row: _better_first([(part.get("answer"), -part["rank"]) for part in row["answers"]]),
    ("completions",): _completions,
    ("generations", "ratings"): lambda row: _better_first(list(zip(row["generations"], row["ratings"], strict=False))),
    ("human_ref_A", "human_ref_B", "labels"): _of_two("human_ref_A", "human_ref_B", lambda row: row["labels"] - 0.5),
    ("response_0", "response_1", "better_response_id"): _of_two(
        "response_0", "response_1", lambda row: 0.5 - row["better_response_id"]
    ),
    ("response_1", "response_2", "preference_strength"): _of_two(
        "response_1", "response_2", lambda row: -row["preference_strength"]
    ),
    ("response1", "response2", "overall_preference"): _of_two(
        "response1", "response2", lambda row: -row["overall_preference"]
    ),
    ("conversation_a", "conversation_b", "winner"): _of_two("conversation_a", "conversation_b", _winner),
}
"""What tells a shape are its columns; of the grades, 1 is SHP's "A is preferred", and negative strengths prefer the
first answer (HelpSteer2 and 3)."""


def _reader(row: Row) -> tuple[tuple[str, ...], Callable[[Row], Found]] | None:
    for names, read in SHAPES.items():
        if all(row.get(name) is not None for name in names) and _holds_answers(row, names):
            return names, read
    return None


def _holds_answers(row: Row, names: tuple[str, ...]) -> bool:
    """Whether a list of answers holds what its shape needs; the other shapes are told by their names alone."""
    parts = row[names[0]]
    if names == ("answers",):
        return isinstance(parts, list) and all(
            isinstance(p, dict) and isinstance(p.get("rank"), int | float) for p in parts
        )
    if names == ("completions",):
        return isinstance(parts, list) and all(isinstance(p, dict) and "response" in p for p in parts)
    return names[0] != "generations" or isinstance(parts, list)


def _is_graded(row: Row) -> bool:
    return isinstance(row.get("response"), str) and row.get("helpfulness") is not None and "prompt" in row
