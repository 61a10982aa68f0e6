"""What an audit found and a person decided on its page, carried out on the preference file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from burnish.core.errors import DataError
from burnish.core.outside import parse_json, read_bytes
from burnish.data.preference_shapes import RIGHT, VOTES
from burnish.data.preferences import Pair, Pairs
from burnish.data.prompts import split_prompt

PAIRS_FILE = "pairs.jsonl"
"""An audit's rows."""


def pair_key(prompt: str, chosen: str, rejected: str, number: int) -> str:
    """Names a pair by its content and place, so that a decision cannot land on another one."""
    content = json.dumps([prompt, chosen, rejected, number], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def apply_decisions(
    pairs: Pairs, decisions: str | Path | None = None, *, audit: str | Path | None = None
) -> tuple[Pairs, dict[str, int]]:
    """The pairs with the exported decisions carried out: flipped ones exchanged, dropped ones left out.

    Args:
        pairs: as read from the audited file.
        decisions: the page's export, decisions.json or decisions.jsonl.
        audit: the directory of an audit, whose probabilities become soft labels (`label_probability`) of the pairs that
            nobody decided, in place of their votes; decided ones are sure.

    Returns:
        the cleaned pairs, and counts of keep, flip and drop, and of soft labels.

    Raises:
        DataError: a file is no export or audit, it decides about a pair that `pairs` does not hold, or the audit has no
            probability of one that it holds.
    """
    made = {} if decisions is None else decisions_of(pairs, decisions)
    right = None if audit is None else _right_of(pairs, Path(audit) / PAIRS_FILE)
    rows, numbers, counts = [], [], {"keep": 0, "flip": 0, "drop": 0}
    for place, (row, number) in enumerate(zip(pairs.rows, pairs.numbers, strict=True)):
        decision = made.get(place)
        if decision is not None:
            counts[decision] += 1
        if decision == "drop":
            continue
        after = flipped(row) if decision == "flip" else row
        if right is not None:
            after = {name: value for name, value in after.items() if name != VOTES}  # they may say the opposite
            after[RIGHT] = 1.0 if decision else right[place]
        rows.append(after)
        numbers.append(number)
    soft = {} if right is None else {"soft": len(rows) - counts["keep"] - counts["flip"]}
    return Pairs(rows, numbers, pairs.source, pairs.dropped), counts | soft


def _right_of(pairs: Pairs, file: Path) -> list[float]:
    """The probability of every pair that its label is right, by an audit of this file."""
    lines = [line for line in read_bytes(file).splitlines() if line.strip()]
    entries = [parse_json(line, where=str(file), error=DataError) for line in lines]
    if not all(isinstance(entry, dict) and {"key", "wrong"} <= entry.keys() for entry in entries):
        raise DataError("is not an audit's", where=str(file))
    wrong = {entry["key"]: entry["wrong"] for entry in entries}
    found = []
    for row, number in zip(pairs.rows, pairs.numbers, strict=True):
        probability = wrong.get(pair_key(*split_prompt(row), number), math.nan)
        if probability is None:
            raise DataError(
                "holds no probabilities: its reader could not judge these pairs",
                where=str(file),
                fix="use a reader that knows the subject, or hard decisions alone",
            )
        if not isinstance(probability, int | float) or not (math.isnan(probability) or 0 <= probability <= 1):
            raise DataError(f"gives row {number} the probability {probability!r}", where=str(file))
        if math.isnan(probability):
            raise DataError(
                f"knows nothing of row {number} of {pairs.source}",
                where=str(file),
                fix="use the file that was audited, unchanged and whole",
            )
        found.append(1 - probability)
    return found


def decisions_of(pairs: Pairs, decisions: str | Path) -> dict[int, str]:
    """{place of a pair: keep, flip or drop} of an export; errors as in `apply_decisions`."""
    path = Path(decisions)
    content = read_bytes(path)
    if path.suffix == ".jsonl":
        lines = [line for line in content.splitlines() if line.strip()]
        entries: Any = [parse_json(line, where=str(path), error=DataError) for line in lines]
    else:
        entries = parse_json(content, where=str(path), error=DataError)
        entries = entries.get("decisions") if isinstance(entries, dict) else None
    if not isinstance(entries, list) or not all(map(_is_decision, entries)):
        raise DataError("is not an export of the audit page", where=str(path))
    numbered = enumerate(zip(pairs.rows, pairs.numbers, strict=True))
    places = {pair_key(*split_prompt(row), number): place for place, (row, number) in numbered}
    made: dict[int, str] = {}
    for entry in entries:
        if entry["key"] not in places and entry["decision"]:
            raise DataError(
                f"decides about row {entry['row']}, whose texts are not those of {pairs.source}",
                where=str(path),
                fix="use the file that was audited, unchanged",
            )
        if entry["decision"]:
            earlier = made.setdefault(places[entry["key"]], entry["decision"])
            if earlier != entry["decision"]:
                raise DataError(
                    f"decides about row {entry['row']} twice: {earlier} and {entry['decision']}",
                    where=str(path),
                    fix="remove one of them",
                )
    return made


def labels_known(made: Mapping[int, str]) -> dict[int, bool]:
    """{place of a pair: whether its label is wrong} of the pairs that were kept or flipped."""
    return {place: decision == "flip" for place, decision in made.items() if decision != "drop"}


def flipped(row: Pair) -> Pair:
    """The pair with its answers exchanged, and with them all columns that speak of one answer or of the label.

    Columns of an answer have its name at the start or end: `chosen-rating` and `rejected-rating`, `score_chosen`. The
    margin is negated, votes change sides, and a soft label becomes the other label's.
    """
    exchanged = {}
    for name, value in row.items():
        exchanged[_of_other_answer(name, row)] = value
    turned: dict[str, Callable[[Any], Any]] = {
        "margin": lambda margin: -margin,
        RIGHT: lambda right: 1 - right,
        VOTES: lambda votes: votes[::-1],
    }
    return exchanged | {name: turn(row[name]) for name, turn in turned.items() if row.get(name) is not None}


def _of_other_answer(name: str, row: Pair) -> str:
    """The column that says of the other answer what this one says of its own, where the row has both."""
    for ours, theirs in (("chosen", "rejected"), ("rejected", "chosen")):
        other = theirs + name[len(ours) :] if name.startswith(ours) else name[: -len(ours)] + theirs
        if (name.startswith(ours) or name.endswith(ours)) and other in row:
            return other
    return name


def _is_decision(entry: Any) -> bool:
    known = isinstance(entry, dict) and {"key", "decision", "row"} <= entry.keys()
    return known and isinstance(entry["key"], str) and entry["decision"] in (None, "", "keep", "flip", "drop")
