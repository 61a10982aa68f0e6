"""Kept episodes as rows: messages alone, or with token ids, labels, kinds and turns for one tokenizer.

    {"id", "task", "reward", "turns", "messages", "tools"}
    {..., "input_ids", "labels", "kind", "turn", "tokenizer"}, and "weights" where they are not all 1

A row of the second form holds the messages that it shows, so that whoever has no use for the ids finds a chat. Of a
failed episode there is one row; its last turn alone counts, with weights below 0: what is said there is to be unlearned
(`burnish.train.maths.unlikelihood`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.core.checkpoint import tokenizer_digest
from burnish.core.errors import DataError
from burnish.data.packing import IGNORED
from burnish.data.trajectories.episode import Episode
from burnish.data.trajectories.kinds import KIND_NAMES, TokenKind
from burnish.data.trajectories.masks import MaskedRow, masked_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNLEARNED = "unlearned"
"""What counts of tokens call those of failed episodes, whatever their kind."""


@dataclass(frozen=True)
class Masking:
    """How episodes become token ids.

    Attributes:
        tokenizer: of the model that is to be trained.
        weights: {kind: weight of its tokens}; 1 where nothing is said.
        context: of the longest row; 0 for any.
        failed: weight of the last turn of a failed episode, which is to be unlearned; 0 where there are none.
    """

    tokenizer: PreTrainedTokenizerBase
    weights: Mapping[str, float] = field(default_factory=dict)
    context: int = 0
    failed: float = 0.0

    @cached_property
    def digest(self) -> str:
        """Of the tokenizer without its chat template, which the ids no longer need."""
        return tokenizer_digest(self.tokenizer, chats=False)

    @property
    def key(self) -> dict[str, Any]:
        """What rows depend on beside their episode."""
        whole = tokenizer_digest(self.tokenizer)
        return {"tokenizer": whole, "weights": dict(self.weights), "context": self.context, "failed": self.failed}


def rows_of_episode(
    episode: Episode, masking: Masking | None, tokens: dict[str, int], *, is_wrong: bool = False
) -> list[dict[str, Any]]:
    """The rows of an episode.

    Args:
        episode: that is kept.
        masking: None for messages alone.
        tokens: {kind: how many tokens are trained on}, added to.
        is_wrong: whether it is a failed one.

    Raises:
        DataError: see `burnish.data.trajectories.masks.masked_rows`; or a row is longer than the context.
    """
    facts = {"id": episode.id, "task": episode.task, "reward": episode.reward, "turns": episode.num_turns}
    tools = {"tools": episode.chat.tools} if episode.chat.tools else {}
    if masking is None:
        return [facts | {"messages": list(episode.chat)} | tools]
    made = []
    masked = masked_rows(masking.tokenizer, episode.chat, where=episode.where)
    for row in masked:
        if 0 < masking.context < len(row.input_ids):
            longest = max(int((row.turn == number).sum()) for number in np.unique(row.turn[row.turn >= 0]))
            raise DataError(
                f"has a row of {len(row.input_ids):,} tokens, its longest turn {longest:,} of them, but the context is "
                f"{masking.context:,}",
                where=episode.where,
                fix="raise the context",
            )
    for row in [_last_turn(masked[-1])] if is_wrong else masked:
        columns = {name: getattr(row, name).tolist() for name in ("input_ids", "labels", "kind", "turn")}
        if is_wrong:
            columns["weights"] = np.where(row.turn >= 0, -masking.failed, 0.0).tolist()
            tokens[UNLEARNED] = tokens.get(UNLEARNED, 0) + int((row.turn >= 0).sum())
        elif any(weight != 1 for weight in masking.weights.values()):
            columns["weights"] = token_weights(row.kind, masking.weights).tolist()
        for kind, name in () if is_wrong else KIND_NAMES.items():
            tokens[name] = tokens.get(name, 0) + int((row.kind == kind).sum())
        shown = {"messages": list(episode.chat)[: row.messages]}
        made.append(facts | shown | tools | columns | {"tokenizer": masking.digest})
    return made


def _last_turn(row: MaskedRow) -> MaskedRow:
    """A row of which the last turn alone is trained on."""
    last = row.turn == row.turn.max()
    return replace(
        row,
        labels=np.where(last, row.labels, IGNORED),
        kind=np.where(last, row.kind, TokenKind.NONE),
        turn=np.where(last, row.turn, -1),
    )


def token_weights(kind: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """The weight of each token in the loss, 0 for what is not trained on."""
    table = np.zeros(len(TokenKind))
    for of, name in KIND_NAMES.items():
        table[of] = weights.get(name, 1.0)
    return table[kind]
