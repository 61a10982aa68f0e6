"""Kept episodes as rows: messages alone, or with token ids, labels, kinds and turns for one tokenizer.

    {"id", "task", "reward", "turns", "messages", "tools"}
    {..., "input_ids", "labels", "kind", "turn", "tokenizer"}, and "weights" where they are not all 1

A row of the second form holds the messages that it shows, so that whoever has no use for the ids finds a chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.core.checkpoint import tokenizer_digest
from burnish.core.errors import DataError
from burnish.data.trajectories.episode import Episode
from burnish.data.trajectories.kinds import KIND_NAMES, TokenKind
from burnish.data.trajectories.masks import masked_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Masking:
    """How episodes become token ids.

    Attributes:
        tokenizer: of the model that is to be trained.
        weights: {kind: weight of its tokens}; 1 where nothing is said.
        context: of the longest row; 0 for any.
    """

    tokenizer: PreTrainedTokenizerBase
    weights: Mapping[str, float] = field(default_factory=dict)
    context: int = 0

    @cached_property
    def digest(self) -> str:
        """Of the tokenizer without its chat template, which the ids no longer need."""
        return tokenizer_digest(self.tokenizer, chats=False)

    @property
    def key(self) -> dict[str, Any]:
        """What rows depend on beside their episode."""
        whole = tokenizer_digest(self.tokenizer)
        return {"tokenizer": whole, "weights": dict(self.weights), "context": self.context}


def rows_of_episode(episode: Episode, masking: Masking | None, tokens: dict[str, int]) -> list[dict[str, Any]]:
    """The rows of an episode.

    Args:
        episode: that is kept.
        masking: None for messages alone.
        tokens: {kind: how many tokens are trained on}, added to.

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
    for row in masked:
        columns = {name: getattr(row, name).tolist() for name in ("input_ids", "labels", "kind", "turn")}
        if any(weight != 1 for weight in masking.weights.values()):
            columns["weights"] = token_weights(row.kind, masking.weights).tolist()
        for kind, name in KIND_NAMES.items():
            tokens[name] = tokens.get(name, 0) + int((row.kind == kind).sum())
        shown = {"messages": list(episode.chat)[: row.messages]}
        made.append(facts | shown | tools | columns | {"tokenizer": masking.digest})
    return made


def token_weights(kind: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """The weight of each token in the loss, 0 for what is not trained on."""
    table = np.zeros(len(TokenKind))
    for of, name in KIND_NAMES.items():
        table[of] = weights.get(name, 1.0)
    return table[kind]
