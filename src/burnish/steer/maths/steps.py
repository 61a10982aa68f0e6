"""Steps of a reasoning: where they end, and which of them check or go back instead of going on.

A step ends with a token that holds the separator (a blank line, say), up to the end of thinking; what follows the last
separator is no step. Nor is what is blank: where the separator is a line end and a blank line two of them, the second
ends nothing. A step is *checking* where it holds a cue ("wait", "let me verify"), else *linear*.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

CUES = (
    "wait",
    "alternatively",
    "let me verify",
    "let me check",
    "double-check",
    "double check",
    "hmm",
    "hold on",
    "another way",
)
"""Of checking and of going back, in English."""

PATTERN = "re:"
"""Begins a cue that is a regular expression."""


def steps_in(
    tokens: Sequence[int], separators: Collection[int], blanks: Collection[int], think_ends: Collection[int]
) -> list[tuple[int, int]]:
    """(place of its first token, place of the token that ends it) of every step before the end of thinking.

    Args:
        tokens: of an answer.
        separators: tokens that hold the separator.
        blanks: tokens that hold nothing but space and the separator.
        think_ends: tokens that end the thinking.
    """
    found, first, begun = [], 0, False
    for place, token in enumerate(tokens):
        if token in think_ends:
            break
        begun |= token not in blanks
        if token in separators:
            if begun:
                found.append((first, place))
            first, begun = place + 1, False
    return found


def is_begun(tokens: Sequence[int], separators: Collection[int], blanks: Collection[int]) -> bool:
    """Whether behind the last separator in these tokens stands more than what is blank."""
    for token in reversed(tokens):
        if token in separators:
            return False
        if token not in blanks:
            return True
    return False


def pattern_of(cues: Sequence[str]) -> re.Pattern[str]:
    """What finds any of the cues: words and phrases whole and in any case, `re:...` as it is."""
    forms = [
        cue.removeprefix(PATTERN) if cue.startswith(PATTERN) else rf"(?i:(?<!\w){re.escape(cue)}(?!\w))" for cue in cues
    ]
    return re.compile("|".join(f"(?:{form})" for form in forms))


def is_checking(step: str, cues: re.Pattern[str]) -> bool:
    """Whether a step's text holds a cue."""
    return cues.search(step) is not None
