"""Gains moved from norms into the matrices that they feed, by what the row of a model type says."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from burnish import arch


def move_gains(module: PreTrainedModel) -> list[str]:
    """Doubles or halves channels of every norm that feeds matrices and undoes it in their columns; the norms' names.

    Powers of two, so that every product is exact and no logit may change.
    """
    facts, views, moved = arch.describe(module), arch.matrices(module), []
    with torch.no_grad():
        for vector in arch.vectors(module):
            readers = [view for view in views if view.reads == vector.feeds]
            if not vector.feeds or any(view.tied for view in readers):
                continue
            assert readers, vector.name
            generator = torch.Generator().manual_seed(3)
            gain = 2.0 ** torch.randint(-1, 2, vector.tensor.shape, generator=generator)
            vector.tensor.copy_(_times(vector.tensor, gain, plus_one=facts.norm == "rms_plus_one"))
            if vector.role == "norm":
                moved.append(vector.name)
                for view in readers:
                    view.write_(view.tensor / gain)
    return moved


def _times(values: Tensor, gain: Tensor, *, plus_one: bool) -> Tensor:
    return (1 + values) * gain - 1 if plus_one else values * gain
