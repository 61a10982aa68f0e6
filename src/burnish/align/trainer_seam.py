"""What the pair-loss trainers rest on in TRL and transformers, as types that say no more than is used of them.

TRL's seam is private methods and outputs of a patched `forward`, whose own types say little; the names here are the
ones that a new version of TRL must still have. `tests/align/test_trainers.py` holds them against the stock trainers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from burnish.align.losses import PairLossName

Example: TypeAlias = dict[str, Any]
"""One row of a data set, before or after TRL's preparation: texts, chats or token ids by column."""

PairBatch: TypeAlias = dict[str, Tensor]
AnyDataset: TypeAlias = Dataset | IterableDataset
Processing: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin
Collator: TypeAlias = Callable[[list[Example]], PairBatch]


class PairArguments(Protocol):
    """What the trainers read of their configuration."""

    pair_loss: PairLossName
    label_smoothing: float
    on_bad_pair: str
    max_length: int | None

    def loss_settings(self) -> Mapping[str, Any]: ...


class PolicyOutputs(Protocol):
    """What a causal model returns under TRL's fused head.

    Attributes:
        log_probs: of the tokens that came, [rows, positions]; the first half of the rows is chosen.
        log_sum_sq_probs: log of the sum of squared probabilities, at the same places.
        aux_loss: load balancing of experts, where it was asked for.
    """

    log_probs: Tensor
    log_sum_sq_probs: Tensor
    aux_loss: Tensor


class ScoreOutputs(Protocol):
    """What a sequence classifier returns."""

    logits: Tensor


class Policy(Protocol):
    """A causal model, as a loss calls it."""

    def __call__(self, **inputs: object) -> PolicyOutputs: ...


class Scorer(Protocol):
    """A sequence classifier, as a loss calls it."""

    def __call__(self, **inputs: object) -> ScoreOutputs: ...
