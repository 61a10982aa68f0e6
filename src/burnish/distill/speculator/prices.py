"""What proposing and verifying cost on this machine, in seconds: what a controller weighs acceptance against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from burnish.distill.speculator.network import DraftCache
from burnish.generate.cache import RoomyLayer, roomy

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.distill.speculator.draft import EagleDraft

CONTEXT, TURNS = 64, 5
"""Tokens before those that are timed, and how often each is timed; the first time does not count."""
LOOKING_UP = 6e-5
"""Of a trie's chain, measured (docs/methods/lookahead.md); nothing beside a pass."""


@torch.inference_mode()
def verifying(model: Model, longest: int) -> list[float]:
    """Of a pass that verifies 0, 1 ... `longest` tokens, medians over turns."""
    module = model.module
    tokens = (torch.arange(CONTEXT + 1 + longest, device=module.device) % module.config.get_text_config().vocab_size)[
        None
    ]
    cache = roomy(module.config)
    module(input_ids=tokens[:, :CONTEXT], past_key_values=cache, use_cache=True)
    nothing = torch.tensor([], dtype=torch.long, device=module.device)

    def read(number: int) -> None:
        module(input_ids=tokens[:, CONTEXT : CONTEXT + 1 + number], past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            assert isinstance(layer, RoomyLayer), "check_trees has refused others"
            layer.keep_columns(CONTEXT, nothing)

    return _timed(read, range(longest + 1))


@torch.inference_mode()
def proposing(draft: EagleDraft, longest: int) -> list[float]:
    """Of 0, 1 ... `longest` tokens of a draft; its step over the text that came is part of the first."""
    network, width = draft.network, draft.config.hidden_size
    hidden = torch.ones(1, CONTEXT + 1, width, device=network.norm.weight.device)
    cache = DraftCache()
    network.read(hidden[:, :CONTEXT], hidden[:, :CONTEXT], cache)

    def step(_: int) -> None:
        network.logits(network.read(hidden[:, -1:], hidden[:, -1:], cache)[:, -1]).argmax(-1)
        cache.cut(CONTEXT)

    (each,) = _timed(step, range(1))
    return [each * number for number in range(longest + 1)]


def _timed(work: Callable[[int], None], numbers: range) -> list[float]:
    seconds = np.zeros((TURNS + 1, len(numbers)))
    for turn in range(TURNS + 1):
        for place, number in enumerate(numbers):
            started = time.perf_counter()
            work(number)
            seconds[turn, place] = time.perf_counter() - started
    return np.median(seconds[1:], 0).tolist()
