"""A row that joins a batch after its first row has gone some steps alone."""

from __future__ import annotations

import random
from typing import Any

from burnish.generate.batch import Batch, Continuation, Wish
from burnish.generate.cache import roomy
from burnish.generate.warp import Sampling


def joined(module: Any, tokenizer: Any, proposer: Any, prompts: list[list[int]], *, after: int, num: int) -> list[Any]:
    """Greedy tokens of both rows.

    Args:
        module, tokenizer: of the model.
        proposer: of a batch.
        prompts: of the first row, and of the one that joins.
        after: steps that the first one goes alone.
        num: tokens of each.
    """
    batch = Batch(module, tokenizer, roomy, proposer)
    rows = [Continuation(n, random.Random(n), Wish(Sampling(0), num, frozenset())) for n in range(2)]
    batch.join(prompts[:1], 1, rows[:1])
    for _ in range(after):
        batch.step()
    batch.join(prompts[1:], 1, rows[1:])
    while batch.rows:
        batch.step()
    return [row.tokens for row in rows]
