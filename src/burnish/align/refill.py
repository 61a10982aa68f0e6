"""Which problems take the places of those that have nothing to teach: dynamic sampling, as in DAPO.

A group whose answers all earned the same has advantage 0, so a batch with such groups is a smaller batch. DAPO (2025,
arXiv 2503.14476) draws until the batch is full of others. Here each empty place is drawn again at most so many times,
and each time another problem is asked: the same one again would have a group with variance by luck alone, and most
often where that variance is a single slip.

What is left after this choice is no sample of the problems: its mean reward is near one half whatever the model can
do. So rewards, lengths and solve rates are told of the first answers, which were drawn before any choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch


def others(rows: Sequence[dict[str, Any]], asked: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a data set without end, in an order of the seed's own: each problem once before any comes again.

    Args:
        rows: of the data set; the same problem may stand there many times.
        asked: prompts of this update, as text, which come last.
        seed: of the order.
    """
    seen, known = set(asked), dict[str, dict[str, Any]]()
    for place in torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist():
        row = rows[place]
        prompt = str(row["prompt"])
        known.setdefault(prompt, row)
        if prompt not in seen:
            seen.add(prompt)
            yield row
    yield from itertools.cycle([known[prompt] for prompt in dict.fromkeys([*asked, *known]) if prompt in known])
