"""Text of tokens as they come: what is told is never taken back.

A token may be part of a character, and a character part of a stop string: both are held back until they are settled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_HALF = "\ufffd"


class Speech:
    """The text of one row.

    Args:
        decode: text of tokens.
        stop: strings before which the text ends.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str]) -> None:
        self._decode, self._stop = decode, stop
        self._tokens: list[int] = []
        self._first = self._settled = 0  # tokens [first, settled) are text already, and the context of what follows
        self._held = ""

    def add(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """What the tokens make certain; with the last of them, all that is left."""
        self._tokens += tokens
        before = self._decode(self._tokens[self._first : self._settled])
        whole = self._decode(self._tokens[self._first :])
        if last or (len(whole) > len(before) and not whole.endswith(_HALF)):
            self._held += whole[len(before) :]
            self._first, self._settled = self._settled, len(self._tokens)
        places = [self._held.index(word) for word in self._stop if word in self._held]
        if places:
            told, self._held = self._held[: min(places)], ""
            return told
        keep = 0 if last else max((_begun(self._held, word) for word in self._stop), default=0)
        told, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return told


def _begun(text: str, word: str) -> int:
    """How many letters at the text's end begin the word."""
    return next((size for size in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:size])), 0)
