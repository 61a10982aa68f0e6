"""Pairs to learn from: how the original goes on before a fault, and how the other model did."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

RATIO = 2.0
"""Most times that one side of a pair may be as long as the other, in tokens."""
GRAM = 13
"""Words in a row that a problem may not share with one that is held out (GPT-3's rule, 2020, arXiv:2005.14165)."""
_WORD = re.compile(r"\w+|[^\w\s]")

DROPPED: tuple[str, ...] = (
    "original unsure",
    "no right continuation",
    "lengths differ",
    "same question",
    "held out",
    "beyond most",
)


def paired(
    found: Iterable[Mapping[str, Any]], held_out: Sequence[str], most: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows of `prompt`, `chosen`, `rejected` for alignment, which are rows of `prompt`, `completion` for training too.

    Args:
        found: problems that were lost, as `burnish.diagnose.run` keeps them.
        held_out: questions that must not be learned from.
        most: pairs, of each kind of fault about as many.

    Returns:
        The rows, and how many problems were left out for which of the reasons `DROPPED`.
    """
    dropped: dict[str, int] = dict.fromkeys(DROPPED, 0)
    grams, questions = {gram for text in held_out for gram in _grams(text)}, set[str]()
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in found:
        question = str(one["problem"]["question"])
        chosen, reason = _chosen(one["fault"])
        if question in questions:
            reason = "same question"
        elif not grams.isdisjoint(_grams(question)):
            reason = "held out"
        if reason:
            dropped[reason] += 1
            continue
        questions.add(question)
        by_kind[one["fault"]["kind"]].append(_row(one, chosen))
    rows = _in_turn(by_kind)
    dropped["beyond most"] = max(0, len(rows) - most)
    return rows[:most], dropped


def _chosen(fault: Mapping[str, Any]) -> tuple[str, str]:
    """The right continuation whose length is nearest to that of the wrong one; or why there is none."""
    if not fault["step"]:
        return "", "original unsure"
    right = [one for one in fault["continuations"] if one["right"]]
    if not right:
        return "", "no right continuation"
    wrong = max(1, fault["rejected_tokens"])
    ratio, text = min((max(one["tokens"] / wrong, wrong / max(1, one["tokens"])), one["text"]) for one in right)
    return (text, "") if ratio <= RATIO else ("", "lengths differ")


def _row(one: Mapping[str, Any], chosen: str) -> dict[str, Any]:
    fault = one["fault"]
    right = [{"role": "assistant", "content": fault["before"] + chosen}]
    return {
        "id": str(one["problem"].get("id", "")),
        "prompt": one["chat"],
        "chosen": right,
        "rejected": [{"role": "assistant", "content": one["own"]["text"]}],
        "completion": right,
        "kind": fault["kind"],
        "step": fault["step"],
        "steps": fault["steps"],
    }


def _in_turn(groups: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The first of every group, then the second of every group, and so on."""
    longest = max(map(len, groups.values()), default=0)
    names = sorted(groups)
    return [groups[name][place] for place in range(longest) for name in names if place < len(groups[name])]


def _grams(text: str) -> set[tuple[str, ...]]:
    """All stretches of `GRAM` words; of a shorter text all its words."""
    words = [word.casefold() for word in _WORD.findall(text)]
    return {tuple(words[place : place + GRAM]) for place in range(max(1, len(words) - GRAM + 1))}


def counted(rows: Sequence[Mapping[str, Any]], faults: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many faults of each kind, how many pairs, and at which share of a solution they are."""
    kinds: Counter[str] = Counter(row["kind"] for row in rows)
    places: dict[str, list[float]] = defaultdict(list)
    for fault in faults:
        if fault["step"]:
            places[fault["kind"]].append(fault["step"] / fault["steps"])
    return [
        {"fault": kind, "lost": len(found), "pairs": kinds[kind], "place": sum(found) / len(found)}
        for kind, found in sorted(places.items())
    ]
