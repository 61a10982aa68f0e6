"""Rows of a dataset of the hub, read as they come, and kept on disk so that a broken stream goes on at its row.

    hf://datasets/OWNER/NAME                          the split train of the newest revision
    hf://datasets/OWNER/NAME@REVISION?split=test&config=en&rows=100000

What names the content is the revision's commit, not the rows: nothing is read twice, and nothing before it is wanted.
`spooled` writes the columns that a text or chat has to a file, with the place of the stream every `SAVE_ROWS` rows and
wherever it breaks. A break is waited out a few times; after that, or after a kill, the next call goes on at the row.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from burnish.core.errors import DataError, MissingExtraError
from burnish.core.outside import parse_json
from burnish.core.store import Store
from burnish.data.forms import COLUMNS

if TYPE_CHECKING:
    from burnish.core.progress import Progress

PREFIX = "hf://datasets/"
FORM = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?(\?(?P<query>.*))?")
SAVE_ROWS = 1000
"""Rows between two places that are kept."""
PAUSES = (1.0, 4.0, 16.0, 60.0)
"""Seconds to wait after the first break, the second ... without a row in between."""
ROWS_FILE, PLACE_FILE = "rows.jsonl", "place.json"


@dataclass(frozen=True)
class HubData:
    """A reference to a dataset of the hub.

    Attributes:
        id: OWNER/NAME.
        revision: branch, tag or commit; None is the newest.
        split: of the dataset.
        config: of the dataset, where it has several.
        rows: only the first of them.
    """

    id: str
    revision: str | None = None
    split: str = "train"
    config: str | None = None
    rows: int | None = None

    @classmethod
    def parse(cls, reference: str) -> HubData:
        """
        Raises:
            DataError: not of the form.
        """
        found = FORM.fullmatch(reference.removeprefix(PREFIX))
        given = dict(parse_qsl((found["query"] or "") if found else "", keep_blank_values=True))
        rows = given.pop("rows", None)
        if found is None or set(given) - {"split", "config"} or not all(given.values()) or _no_count(rows):
            raise DataError(
                "is no dataset of the hub",
                where=reference,
                fix=f"write {PREFIX}OWNER/NAME, with @REVISION and ?split=NAME&config=NAME&rows=NUMBER where wanted",
            )
        return cls(found["id"], found["revision"], rows=None if rows is None else int(rows), **given)

    @property
    def name(self) -> str:
        return PREFIX + self.id


def _no_count(rows: str | None) -> bool:
    return rows is not None and not (rows.isdecimal() and len(rows) < 16 and int(rows))


def is_hub(data: Any) -> bool:
    """Whether a reference is to a dataset of the hub."""
    return isinstance(data, str) and data.startswith(PREFIX)


def hub_hash(reference: str) -> str:
    """Names the content: the commit, and what is read of it.

    Raises:
        DataError: no such dataset, or the hub does not answer.
    """
    return _digest(_pinned(HubData.parse(reference)))


def hub_rows(reference: str) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, name) of a dataset, as they come; where the stream breaks it is an error.

    Raises:
        DataError: no such dataset, the hub does not answer, or the stream breaks.
    """
    asked = HubData.parse(reference)
    number = 0
    try:
        for number, row in enumerate(_RowStream(_pinned(asked)), start=1):
            yield row, f"{asked.name}, row {number}"
    except _breaks() as error:
        raise _broken(asked, number, error) from None


def spooled(reference: str, directory: Path, progress: Progress) -> Path:
    """The rows of a dataset as a `.jsonl` file, which is made where it is missing.

    Args:
        reference: see above.
        directory: where files and places are kept.
        progress: takes the news.

    Raises:
        DataError: no such dataset, the hub does not answer, or the stream has broken again and again.
        OSError: no room.
    """
    asked = HubData.parse(reference)
    key = asdict(_pinned(asked))
    entry = Store(directory).open(f"stream-{_digest(_pinned(asked))[:12]}", key)
    place = _read_place(entry / PLACE_FILE)
    if not place["done"]:
        _spool(asked, _pinned(asked), entry, place, progress)
    return entry / ROWS_FILE


def _spool(asked: HubData, pinned: HubData, entry: Path, place: dict[str, Any], progress: Progress) -> None:
    breaks = 0
    task = progress.task(f"reading {asked.name}", unit="rows", done=place["rows"])
    with (entry / ROWS_FILE).open("ab") as file, task as shown:
        file.truncate(place["bytes"])  # what came after the place was kept will come again
        while not place["done"]:
            before = place["rows"]
            error = _read_on(pinned, file, entry, place)
            shown.advance(place["rows"] - before)
            if error is None:
                continue
            breaks = 0 if place["rows"] > before else breaks
            if breaks == len(PAUSES):
                raise _broken(asked, place["rows"], error)
            progress.log(f"{asked.name} broke off after {place['rows']:,} rows ({_words(error)}); it goes on there")
            time.sleep(PAUSES[breaks])
            breaks += 1


def _read_on(pinned: HubData, file: Any, entry: Path, place: dict[str, Any]) -> BaseException | None:
    """Writes rows from `place` on, which follows; returns what the stream broke with, None at its end."""
    stream = _RowStream(pinned, place["rows"], place["stream"])
    rows = iter(stream)
    while True:
        try:
            row = next(rows, None)
        except _breaks() as error:
            _keep(file, entry, place)
            return error
        if row is None:
            place |= {"stream": None, "done": True}
            _keep(file, entry, place)
            return None
        file.write(json.dumps(row, default=str).encode() + b"\n")
        place |= {"rows": place["rows"] + 1, "bytes": file.tell(), "stream": stream.state()}
        if place["rows"] % SAVE_ROWS == 0:
            _keep(file, entry, place)


class _RowStream:
    """The rows after the first ones, with the columns that a text or chat has; all of them where it has none of those.

    Args:
        pinned: what to read.
        first: how many rows there were before.
        state: of the stream after them.
    """

    def __init__(self, pinned: HubData, first: int = 0, state: Any = None) -> None:
        self.pinned, self.first, self.given = pinned, first, state
        self.dataset: Any = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.first == self.pinned.rows:
            return
        self.dataset = _open(self.pinned)
        if self.given is not None:
            self.dataset.load_state_dict(self.given)
        for number, row in enumerate(self.dataset, start=self.first + 1):
            yield {name: row[name] for name in COLUMNS if name in row} or row
            if number == self.pinned.rows:
                return

    def state(self) -> Any:
        """Where the stream is, after the row that came last."""
        return self.dataset.state_dict()


def _open(pinned: HubData) -> Any:
    from datasets import load_dataset

    return load_dataset(pinned.id, pinned.config, split=pinned.split, revision=pinned.revision, streaming=True)


def _pinned(asked: HubData) -> HubData:
    """With the commit as its revision."""
    try:
        import datasets  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtraError("datasets", "train", "reading from the hub") from None
    try:
        commit = commit_of(asked.id, asked.revision)
    except _breaks() as error:
        what = f"cannot be found, or the hub does not answer ({_words(error)})"
        raise DataError(what, where=asked.name, fix="check the name, the network and HF_HUB_OFFLINE") from None
    return HubData(asked.id, commit, asked.split, asked.config, asked.rows)


def commit_of(id: str, revision: str | None) -> str:
    """The commit that a revision of a dataset is now; a commit is asked nobody about."""
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(id, revision=revision).sha)


def _breaks() -> tuple[type[BaseException], ...]:
    """What the libraries of the hub raise where it does not answer, or where a dataset is not to be read."""
    import httpx

    return (OSError, EOFError, httpx.HTTPError, ValueError)


def _broken(asked: HubData, rows: int, error: BaseException) -> DataError:
    return DataError(
        f"broke off after {rows:,} rows ({_words(error)})",
        where=asked.name,
        fix="run the same command again: a training goes on at that row",
    )


def _words(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _digest(pinned: HubData) -> str:
    return hashlib.sha256(json.dumps(asdict(pinned), sort_keys=True).encode()).hexdigest()


def _read_place(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {"rows": 0, "bytes": 0, "stream": None, "done": False}
    return parse_json(file.read_bytes(), where=str(file), error=DataError, fix="delete its directory to read again")


def _keep(file: Any, entry: Path, place: dict[str, Any]) -> None:
    """The rows first, then the place after them, whole or not at all."""
    file.flush()
    os.fsync(file.fileno())
    part = entry / f"{PLACE_FILE}.partial"
    part.write_text(json.dumps(place), encoding="utf-8")
    part.replace(entry / PLACE_FILE)
