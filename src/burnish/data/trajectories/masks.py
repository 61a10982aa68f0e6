"""Episodes as token ids with a mark on every token that the model has written.

For each turn the chat template writes what the model saw when it answered (the prompt) and the conversation through the
answer. The ids of the prompt must begin the ids of the whole; what follows, with its end-of-turn token, is what the
model writes. No `{% generation %}` mark is needed, and nothing is assumed about the template.

One row holds all turns as long as each prompt goes on from the row so far. Where a template writes the past otherwise
once more is said (it drops earlier thoughts, say), the row ends and the next begins with what the model saw then, so
that every turn is trained on exactly once, after exactly its own prompt.

Ids are compared at every border without tokenizing each prompt anew: a fast tokenizer cuts a text at its added tokens
first, so ids left of the last of these before a border cannot depend on what is right of it.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.core.errors import DataError
from burnish.data.chat import assistant_end, check_template, written_out
from burnish.data.forms import Chat
from burnish.data.packing import IGNORED
from burnish.data.trajectories.kinds import pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 60
"""Characters of a differing piece of text that a message shows."""


@dataclass(frozen=True)
class Said:
    """What the model writes in one turn.

    Attributes:
        number: of the turn, from 0.
        message: number of its message, from 0.
        start, end: first and last + 1 character in the text of its row.
    """

    number: int
    message: int
    start: int
    end: int


@dataclass
class Text:
    """The text of one row, and the turns that are trained on in it."""

    text: str
    turns: list[Said] = field(default_factory=list)


@dataclass(frozen=True)
class MaskedRow:
    """One row.

    Attributes:
        input_ids: token ids.
        labels: the same where the model writes, else -100.
        kind: `TokenKind` of each token, 0 where it is not trained on.
        turn: number of the turn that a token is of, else -1.
        messages: how many messages of the episode it shows.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    kind: np.ndarray
    turn: np.ndarray
    messages: int


def masked_rows(tokenizer: PreTrainedTokenizerBase, chat: Chat, *, where: str) -> list[MaskedRow]:
    """The rows of an episode.

    Raises:
        DataError: no chat template, no fast tokenizer, a template that cannot write the episode out or leaves out its
            calls, or text of which it cannot be said what the model has written; both pieces are then shown.
    """
    check_template(tokenizer, where=where)
    return [_tokens(tokenizer, row, chat, where) for row in texts(tokenizer, chat, where=where)]


def texts(tokenizer: PreTrainedTokenizerBase, chat: Chat, *, where: str) -> list[Text]:
    """The texts of the rows, each with its turns.

    Raises:
        DataError: see `masked_rows`.
    """
    rows: list[Text] = []
    number = -1
    for message, said in enumerate(chat):
        if said["role"] != "assistant":
            continue
        number += 1
        before = written_out(tokenizer, Chat(chat[:message], chat.tools), where=where, add_generation_prompt=True)
        through = written_out(tokenizer, Chat(chat[: message + 1], chat.tools), where=where)
        if not through.startswith(before):
            raise _inseparable(number, before, through, where)
        end = assistant_end(tokenizer, through, len(before))
        if not rows or not before.startswith(rows[-1].text):
            rows.append(Text(""))
        rows[-1].text = through[:end]
        rows[-1].turns.append(Said(number, message, len(before), end))
    if not rows:
        raise DataError("has no assistant message, so nothing to learn from", where=where)
    return rows


def _tokens(tokenizer: PreTrainedTokenizerBase, row: Text, chat: Chat, where: str) -> MaskedRow:
    encoded = tokenizer(row.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.array(encoded["input_ids"], dtype=np.int64)
    starts = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 0]
    anchors = _anchors(tokenizer, ids)
    kind, turn = np.zeros(len(ids), dtype=np.int64), np.full(len(ids), -1, dtype=np.int64)
    for said in row.turns:
        first, last = (
            _border(tokenizer, row.text, place, ids, starts, anchors, said.number, where)
            for place in (said.start, said.end)
        )
        turn[first:last] = said.number
        is_last = not any(message["role"] == "assistant" for message in chat[said.message + 1 :])
        written = row.text[said.start : said.end]
        for place, of in pieces(chat[said.message], written, is_last=is_last, where=where):
            kind[max(first, int(np.searchsorted(starts, said.start + place))) : last] = of
    labels = np.where(turn >= 0, ids, IGNORED)
    return MaskedRow(ids, labels, kind, turn, row.turns[-1].message + 1)


def _anchors(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> list[int]:
    """Places of tokens at which the tokenizer cuts a text before anything else."""
    added: Any = tokenizer.added_tokens_decoder
    cutting = [number for number, token in added.items() if token.special and not token.normalized]
    return np.flatnonzero(np.isin(ids, cutting)).tolist()


def _border(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    place: int,
    ids: np.ndarray,
    starts: np.ndarray,
    anchors: list[int],
    turn: int,
    where: str,
) -> int:
    """How many ids the text before a character has, which are the first ids of the whole.

    Raises:
        DataError: they are not: a token lies across the border.
    """
    count = int(np.searchsorted(starts, place))
    near = bisect_left(anchors, count) - 1
    anchor = anchors[near] if near >= 0 else 0
    begin = int(starts[anchor]) if near >= 0 else 0
    alone = tokenizer(text[begin:place], add_special_tokens=False, verbose=False)["input_ids"]
    if alone != ids[anchor:count].tolist():
        piece, whole = (tokenizer.decode(part[-3:]) for part in (alone, ids[anchor : count + 1].tolist()))
        raise DataError(
            f"in turn {turn + 1} a token lies across the border of what the model writes: {piece[-SHOWN:]!r} ends in "
            f"other tokens alone than within {whole[-SHOWN:]!r}",
            where=where,
            fix="use a chat template that puts a special token there",
        )
    return count


def _inseparable(turn: int, before: str, through: str, where: str) -> DataError:
    letters = enumerate(zip(before, through, strict=False))
    same = next((place for place, (one, other) in letters if one != other), min(len(before), len(through)))
    return DataError(
        f"turn {turn + 1} cannot be told from its prompt: the chat template writes {before[same : same + SHOWN]!r} "
        f"when the model is to answer, and {through[same : same + SHOWN]!r} once it has",
        where=where,
        fix="use a chat template that leaves the opening of an answer as it was",
    )
