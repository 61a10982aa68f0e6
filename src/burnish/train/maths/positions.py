"""Views of a text: other position indices for the same tokens, which rotary positions (RoPE) turn into other angles.

    standard      r_i = i
    skip(s, y)    r_i = i for i < s, i + y for i >= s
    cyclic(u)     r_i = (i + u) mod L

What a token sees follows from the order of the tokens, never from these indices. RoPE depends on differences only: a
skip from the first token on, or of 0, is the standard view.

Source: Shuffle the Context: RoPE-Perturbed Self-Distillation for Long-Context Adaptation (2026, arXiv:2604.14339). The
skip alone, without a second view, is PoSE (2023, arXiv:2309.10400).
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def skip_positions(length: int, start: int, gap: int) -> Int[Tensor, " length"]:
    """Indices with a gap of `gap` before token `start`; the largest is length - 1 + gap."""
    places = torch.arange(length)
    return torch.where(places < start, places, places + gap)


def cyclic_positions(length: int, shift: int) -> Int[Tensor, " length"]:
    """Indices turned by `shift`: the token at length - shift comes to have index 0."""
    return (torch.arange(length) + shift) % length
