"""Key-value retrieval in single characters, for models too small to read English.

A haystack of digits and signs, in which pairs of a small letter and a capital stand: `3;8aQ.05,bT7`. On the next line a
small letter asks for the capital that stood behind it. With a tokenizer of bytes a key is a token and a value is one.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

FILLING = string.digits + ".,;:-+"
KEYS, VALUES = string.ascii_lowercase[:13], string.ascii_uppercase[13:]
"""No letter is both, since answers are compared whatever the case."""
ASKS = "\n"


@dataclass(frozen=True)
class Letters:
    """A haystack with pairs.

    Attributes:
        text: filling and pairs.
        pairs: {key: value}, in the order of the text.
    """

    text: str
    pairs: dict[str, str]


def haystack(rng: random.Random, length: int, num_pairs: int, near: int | None = None) -> Letters:
    """`num_pairs` pairs of different keys in filling, `length` characters in all.

    Args:
        rng: draws places, letters and filling.
        length: of the text.
        num_pairs: at most as many as there are keys, and as fit.
        near: they stand in the last so many characters; anywhere if not given.
    """
    text = rng.choices(FILLING, k=length)
    room = (length if near is None else near) // 2
    places = sorted(rng.sample(range(room), num_pairs))
    keys, values = rng.sample(KEYS, num_pairs), rng.choices(VALUES, k=num_pairs)
    for place, key, value in zip(places, keys, values, strict=True):
        at = length - 2 * room + 2 * place
        text[at : at + 2] = key, value
    return Letters("".join(text), dict(zip(keys, values, strict=True)))


def planted(rng: random.Random, length: int, num_others: int, depth: float) -> tuple[str, str, str]:
    """Text, key and value of a pair that is put behind the given share of a haystack with other pairs."""
    others = haystack(rng, length, num_others)
    key = rng.choice([letter for letter in KEYS if letter not in others.pairs])
    value = rng.choice(VALUES)
    at = round(depth * length / 2) * 2  # between pairs, which begin at even places of an even length
    return others.text[:at] + key + value + others.text[at:], key, value
