"""Which tokens of a vocabulary end a step and which end the thinking: every piece that holds the separator counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from burnish.core.errors import SettingsError
from burnish.steer.maths.steps import CUES, PATTERN, is_checking, pattern_of, spans, step_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COUNTING = 2
"""Of what counts as a step; raised when that changes, so that no sweep mixes counts. In 2 what is blank is none."""
SEPARATOR = "\n\n"
THINK_END = "</think>"


@dataclass(frozen=True)
class Marks:
    """How a reasoning is cut into steps, in text and in the token ids of one vocabulary.

    Attributes:
        separator: what ends a step.
        separator_ids: every token whose text holds it (".\\n\\n" too).
        cues: what a checking step holds, see `burnish.steer.maths.steps`.
        think_end: what ends the thinking.
        think_end_ids: its token; empty where the vocabulary has none, and then nothing ends it.
    """

    separator: str
    separator_ids: tuple[int, ...]
    cues: tuple[str, ...]
    think_end: str
    think_end_ids: tuple[int, ...]

    @cached_property
    def _cues(self) -> re.Pattern[str]:
        return pattern_of(self.cues)

    @cached_property
    def separators(self) -> frozenset[int]:
        return frozenset(self.separator_ids)

    @cached_property
    def think_ends(self) -> frozenset[int]:
        return frozenset(self.think_end_ids)

    def ends(self, tokens: Sequence[int]) -> list[int]:
        """Places of the tokens that end a step."""
        return step_ends(tokens, self.separators, self.think_ends)

    def steps(self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """(place of the token that ends it, +1 if it is linear and -1 if it checks) of every step.

        What is blank, between two separators in a row, is no step: a line end is a token of its own in many
        vocabularies, and every blank line would count as a linear step.
        """
        ends, found = self.ends(tokens), list[tuple[int, int]]()
        for end, (first, stop) in zip(ends, spans(ends), strict=True):
            text = str(tokenizer.decode(list(tokens[first:stop])))
            if text.replace(self.separator, "").strip():
                found.append((end, -1 if is_checking(text, self._cues) else 1))
        return found


def marks_of(
    tokenizer: PreTrainedTokenizerBase,
    *,
    separator: str = SEPARATOR,
    cues: Sequence[str] = CUES,
    think_end: str = THINK_END,
) -> Marks:
    """The marks in a vocabulary.

    Raises:
        SettingsError: no token holds the separator, a cue is no regular expression, or an end of thinking other than
            the usual one is no single token.
    """
    if not separator:
        raise SettingsError("is empty", where="separator")
    if not cues or not all(cue.removeprefix(PATTERN).strip() for cue in cues):
        raise SettingsError("is empty", where="cues")
    try:
        pattern_of(cues)
    except re.error as error:
        raise SettingsError(f"holds what is no regular expression ({error})", where="cues") from None
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    special = set(tokenizer.all_special_ids)
    holding = tuple(t for t, text in enumerate(texts) if separator in text and t not in special)
    if not holding:
        raise SettingsError(
            f"no token of the vocabulary holds the separator {separator!r}, so no token ends a step",
            where="separator",
            fix="choose one that is a token or a part of one",
        )
    end = tokenizer(think_end, add_special_tokens=False)["input_ids"] if think_end else []
    if len(end) != 1 and think_end not in ("", THINK_END):
        raise SettingsError(f"{think_end!r} is {len(end)} tokens, but one must end the thinking", where="think_end")
    return Marks(separator, holding, tuple(cues), think_end, tuple(end) if len(end) == 1 else ())
