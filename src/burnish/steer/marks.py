"""Which tokens of a vocabulary end a step and which end the thinking: every piece that holds the separator counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from burnish.core.errors import SettingsError
from burnish.steer.maths.steps import CUES, PATTERN, is_begun, is_checking, pattern_of, steps_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COUNTING = 3
"""Of what counts as a step; raised when that changes, so that no sweep mixes counts. In 2 what is blank is none; in 3
it is none at decoding either."""
SEPARATOR = "\n\n"
THINK_END = "</think>"


@dataclass(frozen=True)
class Marks:
    """How a reasoning is cut into steps, in text and in the token ids of one vocabulary.

    Attributes:
        separator: what ends a step.
        separator_ids: every token whose text holds it (".\\n\\n" too).
        blank_ids: every token that holds nothing but space and the separator.
        cues: what a checking step holds, see `burnish.steer.maths.steps`.
        think_end: what ends the thinking.
        think_end_ids: its token; empty where the vocabulary has none, and then nothing ends it.
    """

    separator: str
    separator_ids: tuple[int, ...]
    blank_ids: tuple[int, ...]
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
    def blanks(self) -> frozenset[int]:
        return frozenset(self.blank_ids)

    @cached_property
    def think_ends(self) -> frozenset[int]:
        return frozenset(self.think_end_ids)

    def spans(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """(place of its first token, place of the token that ends it) of every step of an answer."""
        return steps_in(tokens, self.separators, self.blanks, self.think_ends)

    def is_begun(self, tokens: Sequence[int]) -> bool:
        """Whether a separator behind these tokens of an answer ends a step, rather than being one of two in a row."""
        return is_begun(tokens, self.separators, self.blanks)

    def steps(self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """(place of the token that ends it, +1 if it is linear and -1 if it checks) of every step."""
        texts = [(end, str(tokenizer.decode(list(tokens[first : end + 1])))) for first, end in self.spans(tokens)]
        return [(end, -1 if is_checking(text, self._cues) else 1) for end, text in texts]


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
    blank = tuple(t for t, text in enumerate(texts) if not text.replace(separator, "").strip() and t not in special)
    end = tokenizer(think_end, add_special_tokens=False)["input_ids"] if think_end else []
    if len(end) != 1 and think_end not in ("", THINK_END):
        raise SettingsError(f"{think_end!r} is {len(end)} tokens, but one must end the thinking", where="think_end")
    return Marks(separator, holding, blank, tuple(cues), think_end, tuple(end) if len(end) == 1 else ())
