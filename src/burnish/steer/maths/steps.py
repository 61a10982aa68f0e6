"""Steps of a reasoning: where they end, and which of them check or go back instead of going on.

A step ends with a token that holds the separator (a blank line, say), up to the end of thinking; what follows the last
separator is no step. A step is *checking* where it holds a cue ("wait", "let me verify"), else *linear*.
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


def step_ends(tokens: Sequence[int], separators: Collection[int], think_ends: Collection[int]) -> list[int]:
    """Places of the tokens that end a step, before the first token that ends the thinking."""
    found = []
    for place, token in enumerate(tokens):
        if token in think_ends:
            break
        if token in separators:
            found.append(place)
    return found


def spans(ends: Sequence[int]) -> list[tuple[int, int]]:
    """(first token, last token + 1) of the step that ends at each of these places."""
    return [(before, end + 1) for before, end in zip([0, *(end + 1 for end in ends)], ends, strict=False)]


def pattern_of(cues: Sequence[str]) -> re.Pattern[str]:
    """What finds any of the cues: words and phrases whole and in any case, `re:...` as it is."""
    forms = [
        cue.removeprefix(PATTERN) if cue.startswith(PATTERN) else rf"(?i:(?<!\w){re.escape(cue)}(?!\w))" for cue in cues
    ]
    return re.compile("|".join(f"(?:{form})" for form in forms))


def is_checking(step: str, cues: re.Pattern[str]) -> bool:
    """Whether a step's text holds a cue."""
    return cues.search(step) is not None
