"""Pages on which every kept episode is read token by token: what was trained, as what, and with what weight.

    episodes.html          the list: one line a row, with a link to
    episodes-01.html       rows that are opened there, `PAGE_TOKENS` tokens a page

Pages need no script. Secrets are gone before rows exist, and all text is escaped. Where there are more than
`MOST_TOKENS` the list says how many rows are left out; `burnish data show` opens those one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.core import page
from burnish.core.checkpoint import tokenizer_digest
from burnish.core.errors import DataError
from burnish.core.made_data import ROWS_FILE
from burnish.core.outside import parse_json, read_lines
from burnish.core.page import numbers
from burnish.data.trajectories.kinds import KIND_NAMES, TokenKind

if TYPE_CHECKING:
    from markupsafe import Markup
    from transformers import PreTrainedTokenizerBase

LIST_FILE = "episodes.html"
PAGE_TOKENS, MOST_TOKENS = 50_000, 1_000_000
_HALF = "\ufffd"
_MOST_TOGETHER = 8
"""Tokens that may share a character; what is no character after so many is shown as it is."""


@dataclass(frozen=True)
class Shown:
    """A row in the list.

    Attributes:
        place: of the row, from 1.
        href: where it is opened.
        facts: episode, task, reward, turns, tokens, trained tokens, as texts.
    """

    place: int
    href: str
    facts: list[str]


@dataclass(frozen=True)
class Wording:
    """What pages call what they show.

    Attributes:
        kind: the command that the rows are from.
        heading, lead: of the list.
        weight: what the weight of a token is.
        usual: the weight that is not said; None says every one.
        notes: below the list.
    """

    kind: str = "burnish data trajectories"
    heading: str = "Kept episodes"
    lead: str = (
        "Every row that is trained on. Open one to read it token by token, with what was trained and with what weight."
    )
    weight: str = "weight"
    usual: float | None = 1.0
    notes: str = "An episode has several rows where its chat template writes the past otherwise once more is said."

    @property
    def columns(self) -> tuple[str, ...]:
        return ("Episode", "Task", "Reward", "Turns", "Tokens", "Trained", f"Sum of {self.weight}s")


CURATED = Wording()


def pages(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    num_rows: Callable[[], int],
    wording: Wording = CURATED,
) -> Iterator[tuple[str, str]]:
    """(name of a file, its content): the pages of masked rows in their order, then the list of them.

    Args:
        rows: as `burnish.data.trajectories.rows` makes them, with token ids; no more are read than are shown.
        tokenizer: that they are made for.
        num_rows: how many there are, asked where some are left out.
        wording: what the rows are.
    """
    listed: list[Shown] = []
    part: list[Mapping[str, Any]] = []
    size = total = number = 0
    cut = False
    for row in rows:
        if total >= MOST_TOKENS:
            cut = True
            break
        part.append(row)
        size, total = size + len(row["input_ids"]), total + len(row["input_ids"])
        if size >= PAGE_TOKENS:
            number += 1
            yield _page(part, number, tokenizer, listed, wording)
            part, size = [], 0
    if part:
        number += 1
        yield _page(part, number, tokenizer, listed, wording)
    left_out = num_rows() - len(listed) if cut else 0
    content = {"wording": wording, "listed": listed, "left_out": left_out}
    yield LIST_FILE, page.render("burnish.data", "episodes.html.j2", **content)


def episode_page(rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    """The rows of one episode alone."""
    return _page(rows, 0, tokenizer, [], CURATED)[1]


def rows_named(source: Path, name: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The masked rows of an episode.

    Args:
        source: rows, or the folder that holds them.
        name: id of the episode.
        tokenizer: that they should be made for.

    Raises:
        DataError: no such file or episode, rows without token ids, or rows for another tokenizer.
    """
    path = source / ROWS_FILE if source.is_dir() else source
    if not path.is_file():
        raise DataError("no such file", where=str(path), fix="name what `burnish data trajectories` wrote")
    rows = ((parse_json(line, where=where, error=DataError), where) for line, where in _lines(path))
    found = [(row, where) for row, where in rows if isinstance(row, dict) and row.get("id") == name]
    if not found:
        raise DataError(f"has no episode {name!r}", where=str(path), fix="name it as its row does, under `id`")
    for row, where in found:
        if not {"input_ids", "kind", "turn", "tokenizer"} <= row.keys():
            raise DataError("has no token ids", where=where, fix="make the rows with --tokenizer")
        if row["tokenizer"] != tokenizer_digest(tokenizer, chats=False):
            raise DataError("is made for another tokenizer", where=where, fix="name that checkpoint in --tokenizer")
    return [row for row, _ in found]


def _lines(path: Path) -> Iterator[tuple[bytes, str]]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield line, f"{path}:{number}"


def _page(
    rows: Sequence[Mapping[str, Any]],
    number: int,
    tokenizer: PreTrainedTokenizerBase,
    listed: list[Shown],
    wording: Wording,
) -> tuple[str, str]:
    name = f"episodes-{number:02d}.html"
    shown = []
    for row in rows:
        place = len(listed) + 1
        facts = facts_of(row)
        listed.append(Shown(place, f"{name}#row-{place}", facts))
        shown.append({"place": place, "facts": facts, "text": written(row, tokenizer, wording)})
    content = {
        "rows": shown,
        "wording": wording,
        "kinds": list(KIND_NAMES.values()),
        "list": LIST_FILE if number else "",
    }
    return name, page.render("burnish.data", "episode.html.j2", **content)


def facts_of(row: Mapping[str, Any]) -> list[str]:
    """What the list says of a row, in the order of `Wording.columns`."""
    trained = np.array(row["turn"]) >= 0
    weights = np.array(row.get("weights", trained), dtype=np.float64)
    reward = numbers.DASH if row["reward"] is None else f"{row['reward']:g}"
    counts = (row["turns"], len(row["input_ids"]), int(trained.sum()))
    return [str(row["id"]), str(row["task"]), reward, *(f"{one:,}" for one in counts), f"{weights[trained].sum():,.6g}"]


def written(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, wording: Wording = CURATED) -> Markup:
    """A row as markup: stretches of one turn, kind and weight, each under its name, and in them every token."""
    from markupsafe import Markup, escape

    texts = token_texts(tokenizer, row["input_ids"])
    weights = row.get("weights") or [1.0] * len(texts)
    marks = list(zip(row["turn"], row["kind"], weights, strict=True))
    parts, place = [], 0
    for (turn, kind, weight), group in itertools.groupby(marks, key=lambda mark: mark if mark[0] >= 0 else (-1, 0, 0)):
        count = len(list(group))
        inside = "".join(f"<i>{escape(text)}</i>" for text in texts[place : place + count])
        place += count
        if turn < 0:
            parts.append(f"<span>{inside}</span>")
            continue
        told = f"turn {turn + 1}, {KIND_NAMES[TokenKind(kind)]}"
        told += f", {wording.weight} {weight:.3g}" if weight != wording.usual else ""
        none = " unweighted" if weight == 0 else ""
        parts.append(f'<span class="k{kind}{none}"><b>{told}</b>{inside}</span>')
    return Markup("".join(parts))


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token within the whole; a character of several tokens stands at the last of them."""

    @cache
    def decoded(part: tuple[int, ...]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    texts: list[str] = []
    first = settled = 0  # tokens [first, settled) have their text already, and are the context of what follows
    for end in range(1, len(ids) + 1):
        before, whole = decoded(tuple(ids[first:settled])), decoded(tuple(ids[first:end]))
        if whole.endswith(_HALF) and end < len(ids) and end - settled < _MOST_TOGETHER:
            texts.append("")
            continue
        texts.append(whole[len(before) :])
        first, settled = settled, end
    return texts
