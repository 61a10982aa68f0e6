"""Which tokens of a text need its long context, and the perplexity of these alone (LongPPL).

An evaluator predicts a token t twice, from the whole text before it and from a short piece of it:

    gain_t = short_t - long_t                            nats that the context beyond the piece is worth
    key_t  = gain_t > key_gain  and  long_t < key_loss   it is worth much, and the token is then predicted well
    LongPPL = exp(mean of a model's loss over the key tokens)

Pieces begin at every multiple of `step` and have `short + step` tokens, the last one fewer; the tokens behind the first
`short` are scored, so that each sees `short` to `short + step - 1` tokens before it. A model with another tokenizer is
scored on its tokens whose characters lie within those of adjacent key tokens.

Source: What is Wrong with Perplexity for Long-context Language Modeling? (2024, arXiv:2410.23771), `longppl.py` of
PKU-ML/LongPPL at 1decd2a.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int


def short_pieces(length: int, short: int, step: int) -> list[tuple[int, int, int]]:
    """(start, first, end) of every piece: tokens first to end - 1 are scored, from those behind start alone."""
    return [(start, start + short, min(start + short + step, length)) for start in range(0, length - short, step)]


def key_tokens(
    long_losses: Float[np.ndarray, " tokens"],
    short_losses: Float[np.ndarray, " tokens"],
    *,
    key_gain: float = 2.0,
    key_loss: float = 2.0,
) -> Bool[np.ndarray, " tokens"]:
    """Which tokens need the long context, by their losses in nats with all of it and with a short one."""
    return (short_losses - long_losses > key_gain) & (long_losses < key_loss)


def key_stretches(offsets: Int[np.ndarray, "keys 2"]) -> Int[np.ndarray, "stretches 2"]:
    """First character and end of runs of key tokens, each of which begins where the one before it ends."""
    if not len(offsets):
        return offsets.reshape(0, 2)
    borders = offsets[1:, 0] != offsets[:-1, 1]
    starts, ends = np.append(True, borders), np.append(borders, True)
    return np.stack([offsets[starts, 0], offsets[ends, 1]], axis=1)


def within(
    offsets: Int[np.ndarray, "tokens 2"], stretches: Int[np.ndarray, "stretches 2"]
) -> Bool[np.ndarray, " tokens"]:
    """Tokens whose characters all lie in one stretch, that which begins last before them."""
    place = np.searchsorted(stretches[:, 0], offsets[:, 0], side="right") - 1
    ends = np.append(stretches[:, 1], -1)  # of a token before the first stretch, whose place is -1
    return offsets[:, 1] <= ends[place]


def long_perplexity(losses: Float[np.ndarray, " tokens"], keys: Bool[np.ndarray, " tokens"]) -> float:
    """exp of the mean loss of the key tokens; NaN where there are none."""
    return math.exp(losses[keys].mean()) if keys.any() else math.nan
