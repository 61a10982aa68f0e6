"""Where a pair's prompt ends, and which pairs are of one question.

Many published files hold the prompt at the start of both answers. What both share is more than the prompt as soon as
the answers begin alike ("I'm sorry, but ..."), so the cut goes back to a border: after the last message of a
conversation, after the last mark of the assistant's turn ("Assistant:", "<|im_start|>assistant"), else after the last
line. Without any border nothing is taken for a prompt.

A question must not be split between the parts of a cross-fitting or between training and held-out pairs, however its
prompt is stored: pairs of one group share their opening turn (or, where no turns are marked, their opening line). An
opening that many pairs share and that no prompt ends with, such as a system message or an instruction's first line, is
followed by the next turn until it tells questions apart. Pairs without a prompt share a group where they share an
answer. Nearly the same counts as the same (`near_copies`): for openings, whole prompts and both answers of a pair
together, unless a crowd of pairs is made of one template, and for the answers of pairs without a prompt.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from burnish.data.near_copies import WORD, same_texts

TURN = re.compile(
    r"(?:^|(?<=\n)|(?<=\s))(?:"
    r"(?:Assistant|AI|Bot|Chatbot|Answer|Response|Output|GPT|Model)[ \t]?:"
    r"|#{1,4}[ \t]*(?:Response|Answer|Assistant|Output)[ \t]*:?[ \t]*\n?"
    r"|\[/INST\])"
    r"|<\|im_start\|>assistant\n?|<\|start_header_id\|>assistant<\|end_header_id\|>\s*|<\|assistant\|>\n?"
    r"|<start_of_turn>model\n?|\[/INST\]"
)
"""The end of such a mark is where an assistant's answer begins."""

CROWD = 0.2
"""An opening of more than this share of all pairs cannot be spread over five folds; it is continued where it can be."""

MOST = 0.9
"""Of pairs without any mark, this share must have lines in common for these to be prompts."""

LEAST_CROWD = 8
"""Fewer pairs than this are no crowd."""

TELLING = 16
"""Words and marks of two answers that together tell a question: "yes" and "no" answer many."""


def split_prompt(row: dict[str, Any]) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) as text; a row without `prompt` is cut at the last border that its answers share."""
    if row.get("prompt") is not None:
        return text_of(row["prompt"]), text_of(row["chosen"]), text_of(row["rejected"])
    chosen, rejected = row["chosen"], row["rejected"]
    cut = _last_border(chosen, rejected)
    return text_of(chosen[:cut]) if cut else "", text_of(chosen[cut:]), text_of(rejected[cut:])


def question_groups(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The question of every pair, named by its first prompt in the order of texts, in whatever form it is stored."""
    turns = [_turns(row) for row in rows]
    unmarked = [place for place, row in enumerate(rows) if _is_unmarked(row)]
    if sum(bool(turns[place]) for place in unmarked) < MOST * len(unmarked):
        for place in unmarked:  # that a few answers share their first lines makes these no prompts
            turns[place] = ()
    openings = _openings(turns)
    near = _near_copies(rows, openings)
    groups = _joined([(opening, *keys) if opening else keys for opening, keys in zip(openings, near, strict=True)])
    names: dict[int, str] = {}
    for row, group in zip(rows, groups, strict=True):
        prompt, chosen, _ = split_prompt(row)
        names[group] = min(names.get(group, prompt or chosen), prompt or chosen)
    return [names[group] for group in groups]


def text_of(value: str | Sequence[dict[str, Any]]) -> str:
    """The words of an answer or prompt, chat messages joined with their roles."""
    if isinstance(value, str):
        return value
    contents = [content_of(message) for message in value]
    if len(value) == 1:
        return contents[0]
    return "\n\n".join(f"{message['role']}: {content}" for message, content in zip(value, contents, strict=True))


def content_of(message: dict[str, Any]) -> str:
    """The text of a message; of one in parts ({type: text}, {type: image}) the text parts; of a tool call the call."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        return json.dumps(message.get("tool_calls"), ensure_ascii=False, default=str)
    return " ".join(str(part.get("text", "")) for part in content)


def _last_border(chosen: Any, rejected: Any) -> int:
    """How many messages or characters at the start of both answers are the prompt; something is left of each."""
    shared = 0
    for first, second in zip(chosen, rejected, strict=False):
        if first != second:
            break
        shared += 1
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    if not isinstance(chosen, str):
        return shared
    marks = [mark.end() for mark in TURN.finditer(chosen) if mark.end() <= shared]
    return marks[-1] if marks else chosen.rfind("\n", 0, shared) + 1


def _is_unmarked(row: dict[str, Any]) -> bool:
    """Whether the prompt is in the answers, and nothing but a line's end can tell where it stops."""
    inside = row.get("prompt") is None and isinstance(row["chosen"], str)
    return inside and not TURN.search(row["chosen"][: _last_border(row["chosen"], row["rejected"])])


def _turns(row: dict[str, Any]) -> tuple[str, ...]:
    """The prompt in parts that may be its opening, compared without regard to case and space; empty without prompt."""
    prompt = row.get("prompt")
    guessed = prompt is None
    if guessed:
        prompt = row["chosen"][: _last_border(row["chosen"], row["rejected"])]
    if not isinstance(prompt, str):
        return tuple(filter(None, (_plain(f"{message['role']}: {content_of(message)}") for message in prompt)))
    ends = [mark.end() for mark in TURN.finditer(prompt)]
    if not ends and guessed:
        ends = [place + 1 for place, letter in enumerate(prompt) if letter == "\n"]
    starts = [0, *ends]
    return tuple(filter(None, (_plain(prompt[a:b]) for a, b in zip(starts, [*ends, len(prompt)], strict=True))))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _openings(turns: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Of every prompt the shortest beginning that is no crowd's, or at which another prompt ends."""
    found: list[tuple[str, ...]] = [()] * len(turns)
    open_groups = [([place for place, parts in enumerate(turns) if parts], 1)]
    while open_groups:
        members, depth = open_groups.pop()
        by_opening: dict[tuple[str, ...], list[int]] = {}
        for place in members:
            by_opening.setdefault(turns[place][:depth], []).append(place)
        for opening, places in by_opening.items():
            ends_here = any(len(turns[place]) == depth for place in places)
            if len(places) > max(LEAST_CROWD, CROWD * len(turns)) and not ends_here:
                open_groups.append((places, depth + 1))
                continue
            for place in places:
                found[place] = opening
    return found


def _near_copies(rows: Sequence[dict[str, Any]], openings: Sequence[tuple[str, ...]]) -> list[list[Hashable]]:
    """Of every pair: what it shares with pairs of nearly the same opening, prompt, or two answers."""
    split = [
        split_prompt(row) if opening else ("", text_of(row["chosen"]), text_of(row["rejected"]))
        for row, opening in zip(rows, openings, strict=True)
    ]
    said = same_texts([answer for _, *both in split for answer in both])
    found: list[list[Hashable]] = [[] for _ in rows]

    def share(kind: str, names: Sequence[Hashable]) -> None:
        count = Counter(names)
        for keys, name in zip(found, names, strict=True):
            if name is not None and 1 < count[name] <= max(LEAST_CROWD, CROWD * len(rows)):
                keys.append((kind, name))

    for kind, texts in (("opening", [" ".join(opening) for opening in openings]), ("prompt", [p for p, *_ in split])):
        share(kind, [name if text else None for name, text in zip(same_texts(texts), texts, strict=True)])
    telling = [len(WORD.findall(f"{chosen} {rejected}")) >= TELLING for _, chosen, rejected in split]
    share("pair", [frozenset(said[2 * n : 2 * n + 2]) if tells else None for n, tells in enumerate(telling)])
    for keys, opening, both in zip(found, openings, zip(said[::2], said[1::2], strict=True), strict=True):
        if not opening:  # nothing but answers tells which question it was
            keys += [("answer", number) for number in both]
    return found


def _joined(keys: Sequence[Iterable[Any]]) -> list[int]:
    """A number per item; items that share a key, directly or through others, have the same."""
    parent = list(range(len(keys)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    first: dict[Any, int] = {}
    for item, names in enumerate(keys):
        for name in names:
            parent[root(item)] = root(first.setdefault(name, item))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(item), len(numbers)) for item in range(len(keys))]
