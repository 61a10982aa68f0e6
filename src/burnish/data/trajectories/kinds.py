"""What a generated piece of text is: reasoning, the name of an action, its arguments, a code edit, a final message.

A turn as its template writes it is cut at the places where its content ends and where the names of its calls stand:

    <think>look first</think> I open it.  <call>{"name": "  open  ", "arguments": {"path": "a.py"}}</call><end>
    |--------------- reasoning --------------------------|------|------------- arguments -----------------|

What the template puts around belongs to the piece before it, at the start of a turn to the first. Content in front of
calls is reasoning; without calls what follows the thoughts is the final message. Where an agent acts in text alone, the
last block of code of a turn that is answered is its arguments, and what stands before is reasoning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any

from burnish.core.errors import DataError, SettingsError, nearest
from burnish.data.forms import LEAST_WEIGHT


class TokenKind(IntEnum):
    """Of a token that is trained on; 0 is one that is not."""

    NONE = 0
    REASONING = 1
    ACTION = 2
    ARGUMENTS = 3
    EDIT = 4
    FINAL = 5


KIND_NAMES = {
    TokenKind.REASONING: "reasoning",
    TokenKind.ACTION: "action",
    TokenKind.ARGUMENTS: "arguments",
    TokenKind.EDIT: "edit",
    TokenKind.FINAL: "final",
}
"""As settings and reports call them."""
EDITING = re.compile(r"edit|write|patch|replace|insert|create_file", re.IGNORECASE)
LOOKING = frozenset({"view", "open", "undo_edit"})
"""Commands of an editor that change nothing by what is written in them."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Where messages keep thoughts beside their content."""
THOUGHT_ENDS = ("</think>", "</thinking>", "</thought>", "</reasoning>")


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuses weights of kinds that do not exist, and weights below 0.

    Raises:
        SettingsError: naming it.
    """
    names = list(KIND_NAMES.values())
    for name, weight in weights.items():
        if name not in names:
            guess = nearest(name, names)
            advice = f"did you mean {guess!r}?" if guess else f"kinds are {', '.join(names)}"
            raise SettingsError(f"there is no kind of token {name!r}", where="weights", fix=advice)
        if not 0 <= weight < float("inf"):
            raise SettingsError(f"the weight of {name} is {weight}, but 0 is the least", where="weights")
    if not any(weights.get(name, 1.0) for name in names):
        raise SettingsError("all weights are 0, so nothing is learned", where="weights", fix="leave some at 1")


def check_failed(weight: float, filters: Sequence[str]) -> None:
    """Refuses a weight of failed episodes that is too large, or that nothing says of which.

    Args:
        weight: by which their last turn is unlearned; 0 for leaving them out.
        filters: names of those that are asked.

    Raises:
        SettingsError: naming it.
    """
    if not 0 <= weight <= -LEAST_WEIGHT:
        what = f"the weight of failed episodes is {weight:g}, but what is unlearned counts 0 to {-LEAST_WEIGHT:g}"
        raise SettingsError(what, where="failed", fix="use 0.05, say")
    if weight and "verified" not in filters:
        what = "nothing says which episodes have failed, as verified is not among the filters"
        raise SettingsError(what, where="failed", fix="add it to the filters, or leave failed out")


def pieces(
    message: Mapping[str, Any], written: str, *, is_last: bool = True, where: str
) -> list[tuple[int, TokenKind]]:
    """(first character, kind) of the pieces of a turn, in order; the first begins at 0.

    Args:
        message: of the assistant.
        written: what the template makes of it, without the opening that it puts before an answer.
        is_last: whether nothing answers it; a block of code in another turn without calls is what it does.
        where: for messages.

    Raises:
        DataError: the template leaves out what the message calls.
    """
    calls = message.get("tool_calls") or []
    if not calls and not is_last and "```" in written:
        start = _last_block(written)
        return [(0, TokenKind.REASONING), (start, TokenKind.ARGUMENTS)] if start else [(0, TokenKind.ARGUMENTS)]
    if not calls:
        return list(_said(message, written))
    found, place = [(0, TokenKind.REASONING)], _end_of(message["content"], written)
    for call in calls:
        name = call["function"]["name"]
        start = written.find(name, place)
        if start < 0:
            raise DataError(
                f"calls {name!r}, which the chat template does not write out",
                where=where,
                fix="use a model whose chat template knows tools",
            )
        place = start + len(name)
        found += [(start, TokenKind.ACTION), (place, _kind_of_arguments(call["function"]))]
        place = _past_arguments(call["function"].get("arguments"), written, place)
    if found[1][0] == 0 or not (message["content"].strip() or any(message.get(key) for key in THOUGHTS)):
        found[0:2] = [(0, TokenKind.ACTION)]  # nothing was thought: what opens the call is part of it
    return found


def _said(message: Mapping[str, Any], written: str) -> Iterator[tuple[int, TokenKind]]:
    """Thoughts and a final message."""
    end = max((written.rfind(mark) + len(mark) for mark in THOUGHT_ENDS if mark in written), default=0)
    for key in THOUGHTS:
        if isinstance(thought := message.get(key), str) and thought.strip() and thought.strip() in written:
            end = max(end, written.index(thought.strip()) + len(thought.strip()))
    if end:
        yield 0, TokenKind.REASONING
    if not end or end < len(written):
        yield end, TokenKind.FINAL


def _last_block(written: str) -> int:
    """Where the last block of code begins; one that is not closed is the last."""
    fences = [match.start() for match in re.finditer("```", written)]
    return fences[(len(fences) - 1) // 2 * 2]


def _end_of(content: str, written: str) -> int:
    """Where the content ends in what is written; 0 where the template changes it."""
    content = content.strip()
    start = written.find(content) if content else -1
    return start + len(content) if start >= 0 else 0


def _past_arguments(arguments: Any, written: str, place: int) -> int:
    """Past the arguments where they stand as JSON, so that a name inside them is not taken for the next call."""
    for text in (json.dumps(arguments, ensure_ascii=False), json.dumps(arguments)):
        start = written.find(text, place)
        if start >= 0:
            return start + len(text)
    values = arguments.values() if isinstance(arguments, Mapping) else ()
    for value in values:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        start = written.find(text, place)
        place = start + len(text) if start >= 0 else place
    return place


def _kind_of_arguments(function: Mapping[str, Any]) -> TokenKind:
    """A code edit where the tool, or the command that an editor is given, changes a file."""
    arguments = function.get("arguments")
    command = arguments.get("command") if isinstance(arguments, Mapping) else None
    if command in LOOKING or not EDITING.search(function["name"]):
        return TokenKind.ARGUMENTS
    return TokenKind.EDIT
