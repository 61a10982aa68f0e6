"""The way from files of episodes to rows: filters, a funnel that says what they dropped, masks.

Episodes are read twice. The first pass keeps some hundred bytes of each and decides; the second writes what is kept.
Both keep what they have done part by part, so that a run that was stopped goes on, and both may be shared by several
processes; what comes out is the same. Memory grows with the number of episodes, not with their length.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from burnish.core.checkpoint import text_digest
from burnish.core.errors import DataError
from burnish.core.progress import Progress
from burnish.core.store import Key, Store, digest_of
from burnish.core.workers import in_order
from burnish.data.trajectories.filters import Evaluation, Facts, Filter, apply, evaluation_of, facts_of
from burnish.data.trajectories.masks import masked_rows
from burnish.data.trajectories.pages import pages
from burnish.data.trajectories.read import REWARDS_FILE, Unread, episode_files, episodes, rows_of_file, unread_episodes
from burnish.data.trajectories.rows import Masking, rows_of_episode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

PART = 64
"""Episodes that are written at once, and done again after a kill."""
LOOKED_AT, LOOKED_TOGETHER = 16, 1024
"""Episodes that the first pass gives to a process at once, and of which it keeps together what it has found."""
SAMPLE = 3
"""Dropped episodes that the funnel shows of each filter."""
UNREADABLE, MASKS = "unreadable", "masks"
ROWS, NEWS, FOUND = "rows.jsonl", "news.json", "found.jsonl"


@dataclass(frozen=True)
class Decided:
    """What the first pass has found.

    Attributes:
        found: of every episode, in the order of reading.
        numbers: which of all rows each of them is, from 0; some may not be readable.
        fates: the number of the filter that drops it, or -1, and why.
        skipped: what is wrong with those that could not be read.
        num_secrets: how many secrets were redacted.
    """

    found: list[Facts]
    numbers: list[int]
    fates: list[tuple[int, str]]
    skipped: list[str]
    num_secrets: int

    @property
    def num_kept(self) -> int:
        return sum(number < 0 for number, _ in self.fates)


@dataclass
class Curated:
    """Rows, and how they came to be.

    Attributes:
        rows: to be read once; they lie on disk.
        pages: (name, content) of pages that show masked rows token by token.
        funnel: {filter, dropped, left, sample} of every step in order, the first of all episodes.
        num_secrets: how many secrets were redacted.
        num_failed: of the episodes that are kept, those to be unlearned.
        tokens: {kind: how many tokens are trained on}, of masked rows.
    """

    rows: Iterator[dict[str, Any]]
    funnel: list[dict[str, Any]]
    num_secrets: int
    num_failed: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    pages: Iterable[tuple[str, str]] = ()

    @property
    def about(self) -> dict[str, Any]:
        """What was counted, as JSON."""
        failed = {"failed_kept": self.num_failed} if self.num_failed else {}
        return {"funnel": self.funnel, "secrets_redacted": self.num_secrets, "trained_tokens": self.tokens} | failed


@dataclass(frozen=True)
class Curation:
    """What to do with episodes.

    Attributes:
        filters: in their order, from `burnish.data.trajectories.filters.parse_filters`.
        apart_from: file with the repositories and base commits that are evaluated on.
        skip_bad: leave out episodes that cannot be read.
        keep_failed: keep those that `verified` alone would drop, to be unlearned.
    """

    filters: Sequence[Filter]
    apart_from: str | Path | None = None
    skip_bad: bool = False
    keep_failed: bool = False

    @property
    def evaluation(self) -> Evaluation:
        """What is evaluated on."""
        if self.apart_from is None:
            return frozenset()
        return evaluation_of(row for path in episode_files([self.apart_from]) for row in rows_of_file(path))


@dataclass(frozen=True)
class Looked:
    """What one episode is found to be; `facts` is None where `error` says why it is of no use."""

    id: str = ""
    where: str = ""
    num_secrets: int = 0
    facts: Facts | None = None
    error: DataError | None = None

    def json(self) -> str:
        """As one line."""
        error = None if self.error is None else [self.error.what, self.error.where, self.error.fix]
        return json.dumps([self.id, self.where, self.num_secrets, self.facts, error])

    @classmethod
    def of_json(cls, line: str) -> Looked:
        name, where, num_secrets, facts, error = json.loads(line)
        refused = None if error is None else DataError(error[0], where=error[1], fix=error[2])
        return cls(name, where, num_secrets, None if facts is None else Facts(*facts), refused)


@dataclass(frozen=True)
class FirstPass:
    """The first pass over some episodes, in any process."""

    filters: Sequence[Filter]
    evaluation: Evaluation
    keep_failed: bool

    def __call__(self, part: Sequence[Unread]) -> list[Looked]:
        return [self.look(unread) for unread in part]

    def look(self, unread: Unread) -> Looked:
        known = Looked()
        try:
            episode = unread.read()
            known = Looked(episode.id, episode.where, episode.num_secrets)
            return replace(known, facts=facts_of(episode, self.filters, self.evaluation, keep_failed=self.keep_failed))
        except DataError as error:
            return replace(known, error=error)


class KeptLooks:
    """What the first pass has found, on disk.

    Args:
        store: where it lies.
        key: what it depends on: the files, the filters, and what is evaluated on.
    """

    def __init__(self, store: Store, key: Key) -> None:
        self.store, self.key, self.number = store, dict(key) | {"together": LOOKED_TOGETHER}, 0

    @property
    def name(self) -> str:
        """Of the next entry; where filters or files have changed since, that of another."""
        return f"{digest_of(self.key)[:12]}-{self.number:06d}"

    def read(self) -> Iterator[Looked]:
        """What an earlier start has found, in the order of reading."""
        while (entry := self.store.find(self.name, self.key)) is not None:
            self.number += 1
            with (entry / FOUND).open(encoding="utf-8") as file:
                yield from map(Looked.of_json, file)

    def keep(self, found: Sequence[Looked]) -> None:
        with self.store.writing(self.name, self.key) as directory:
            (directory / FOUND).write_text("".join(f"{one.json()}\n" for one in found), encoding="utf-8")
        self.number += 1


def _looked(
    files: Sequence[str | Path], curation: Curation, evaluation: Evaluation, kept: KeptLooks | None, workers: int
) -> Generator[Looked]:
    """Every episode in the order of reading; what an earlier start has found is not looked at again."""
    done = 0
    for one in () if kept is None else kept.read():
        done += 1
        yield one
    looking = FirstPass(curation.filters, evaluation, curation.keep_failed)
    parts = in_order(looking, _together(islice(unread_episodes(files), done, None), LOOKED_AT), workers)
    with closing(parts):
        fresh: list[Looked] = []
        for one in chain.from_iterable(parts):
            yield one  # kept only once whoever asked has not refused it
            fresh.append(one)
            if kept is not None and len(fresh) == LOOKED_TOGETHER:
                kept.keep(fresh)
                fresh = []
        if kept is not None and fresh:
            kept.keep(fresh)


def decide(
    files: Sequence[str | Path],
    curation: Curation,
    progress: Progress,
    workers: int = 1,
    *,
    store: Store | None = None,
    digest: str = "",
) -> Decided:
    """The first pass.

    Args:
        files: of episodes, and folders.
        curation: what to do.
        progress: for its bar.
        workers: processes that share it.
        store: keeps what is found, so that a start that was stopped goes on; None keeps nothing.
        digest: of the files, where there is a store.

    Raises:
        DataError: an episode that cannot be read, two with one name, or none at all.
    """
    skipped: list[str] = []
    found, numbers, num_secrets = list[Facts](), list[int](), 0
    places: dict[str, str] = {}
    evaluation = curation.evaluation
    kept = None
    if store is not None:
        key = {"files": digest, "filters": [str(one) for one in curation.filters], "keep_failed": curation.keep_failed}
        kept = KeptLooks(store, key | {"evaluation": text_digest([list(one) for one in sorted(evaluation)])})
    looks = _looked(files, curation, evaluation, kept, workers)
    with progress.task("reading episodes", unit="episodes") as task, closing(looks):
        for number, looked in enumerate(looks):
            task.advance(1)
            if looked.id in places:
                raise DataError(
                    f"has the id {looked.id!r} of the episode at {places[looked.id]}",
                    where=looked.where,
                    fix="give every episode an `id` of its own, or each file once",
                )
            if looked.id:
                places[looked.id] = looked.where
            num_secrets += looked.num_secrets
            if looked.facts is not None:
                found.append(looked.facts)
                numbers.append(number)
            elif looked.error is not None:
                if not curation.skip_bad:
                    raise looked.error
                skipped.append(str(looked.error))
    if not found:
        raise DataError("no episode could be read", where=str(files[0]), fix=(skipped or [None])[0])
    return Decided(found, numbers, apply(found, curation.filters), skipped, num_secrets)


def curate(
    files: Sequence[str | Path],
    curation: Curation,
    masking: Masking | None,
    work: Path,
    progress: Progress,
    workers: int = 1,
) -> Curated:
    """Both passes.

    Args:
        files: of episodes, and folders.
        curation: what to do.
        masking: how they become token ids; None leaves rows of messages alone.
        work: keeps what the first pass has found, and parts of the rows until they are read.
        progress: for bars and log lines.
        workers: processes that share both.

    Raises:
        DataError: see `decide`; or no episode is left.
    """
    digest = _digest(files)
    decided = decide(files, curation, progress, workers, store=Store(work / "looked"), digest=digest)
    steps = funnel(decided, curation.filters)
    if not decided.num_kept:
        raise DataError(f"no episode is left: {in_words(steps)}", where=str(files[0]), fix="choose other filters")
    parts = _parts(files, digest, masking, decided, Store(work / "parts"), progress, workers)
    refused: list[dict[str, str]] = []
    tokens: dict[str, int] = {}
    num_failed = 0
    for part in parts:
        news = json.loads((part / NEWS).read_text(encoding="utf-8"))
        refused, num_failed = refused + news["refused"], num_failed + news["failed"]
        for name, count in news["tokens"].items():
            tokens[name] = tokens.get(name, 0) + count
    if masking is not None:
        left = decided.num_kept - len(refused)
        steps.append({"filter": MASKS, "dropped": len(refused), "left": left, "sample": _sample(refused)})
        if not left:
            raise DataError(f"no episode is left: {in_words(steps)}", where=str(files[0]), fix=refused[0]["reason"])
    shown = () if masking is None else pages(_lines(parts), masking.tokenizer, lambda: _num_lines(parts))
    return Curated(_lines(parts), steps, decided.num_secrets, num_failed, tokens, shown)


def try_episode(files: Sequence[str | Path], tokenizer: PreTrainedTokenizerBase, *, skip_bad: bool) -> None:
    """Reads the first episode and writes it out, so that nothing long begins with a template that cannot do it.

    Raises:
        DataError: see `burnish.data.trajectories.masks.masked_rows`.
    """
    first = next(episodes(files, skipped=[] if skip_bad else None), None)
    if first is None:
        raise DataError("no episode could be read", where=str(files[0]))
    masked_rows(tokenizer, first.chat, where=first.where)


def funnel(decided: Decided, filters: Sequence[Filter]) -> list[dict[str, Any]]:
    """What every filter dropped, with a sample that does not depend on the order of reading."""
    left = len(decided.found) + len(decided.skipped)
    steps: list[dict[str, Any]] = [{"filter": "all", "dropped": 0, "left": left, "sample": []}]
    if decided.skipped:
        left -= len(decided.skipped)
        sample = [{"episode": "", "reason": reason} for reason in sorted(decided.skipped)[:SAMPLE]]
        steps.append({"filter": UNREADABLE, "dropped": len(decided.skipped), "left": left, "sample": sample})
    for number, filter_ in enumerate(filters):
        dropped = [
            {"episode": facts.id, "reason": reason}
            for facts, (by, reason) in zip(decided.found, decided.fates, strict=True)
            if by == number
        ]
        left -= len(dropped)
        steps.append({"filter": str(filter_), "dropped": len(dropped), "left": left, "sample": _sample(dropped)})
    return steps


def in_words(steps: Sequence[Mapping[str, Any]]) -> str:
    """A funnel in one line."""
    dropped = [f"{step['filter']} dropped {step['dropped']:,}" for step in steps[1:] if step["dropped"]]
    return f"of {steps[0]['left']:,} episodes {', '.join(dropped) or 'none were dropped'}"


def explain(
    files: Sequence[str | Path], curation: Curation, name: str, progress: Progress, workers: int = 1
) -> list[str]:
    """Why an episode is kept or dropped, a line for every filter.

    Raises:
        DataError: there is no such episode; or see `decide`.
    """
    decided = decide(files, curation, progress, workers)
    place = next((place for place, facts in enumerate(decided.found) if facts.id == name), None)
    if place is None:
        raise DataError(f"there is no episode {name!r}", where="--explain", fix="name it as the funnel does")
    by, reason = decided.fates[place]
    here = next(episode for episode in episodes(files, skipped=[]) if episode.id == name)
    kept = "kept, to be unlearned" if decided.found[place].is_wrong else "kept"
    lines = [f"{name}: {kept if by < 0 else f'dropped by {curation.filters[by]}, as {reason}'}"]
    for number, filter_ in enumerate(curation.filters):
        check = filter_.rule.check
        if check is not None:
            said = check(here, filter_.number, curation.evaluation)
        elif 0 <= by < number:
            said = "not asked, as the episode is gone by then"
        else:
            said = reason if by == number else ""
        lines.append(f"  {filter_}: {said or 'passes'}")
    return lines


def _sample(dropped: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    return sorted(dropped, key=lambda one: hashlib.sha256(one["episode"].encode()).digest())[:SAMPLE]


class KeptEpisode(NamedTuple):
    """An episode that is kept, and whether it is a failed one."""

    unread: Unread
    is_wrong: bool


@dataclass(frozen=True)
class SecondPass:
    """The second pass over one part, in any process."""

    masking: Masking | None
    store: Store
    key: Key

    def __call__(self, named: tuple[str, Sequence[KeptEpisode]]) -> int:
        """Writes the part of this name; how many episodes it has."""
        name, part = named
        with self.store.writing(name, self.key) as directory:
            _write(part, self.masking, directory)
        return len(part)


def _parts(
    files: Sequence[str | Path],
    digest: str,
    masking: Masking | None,
    decided: Decided,
    store: Store,
    progress: Progress,
    workers: int,
) -> list[Path]:
    """The directories of all parts; those that an earlier start has finished are passed over."""
    fates = [[facts.id, number] for facts, (number, _) in zip(decided.found, decided.fates, strict=True)]
    key = {"files": digest, "fates": text_digest(fates), "part": PART}
    key |= {} if masking is None else masking.key
    kept = {
        row: facts.is_wrong
        for row, facts, (number, _) in zip(decided.numbers, decided.found, decided.fates, strict=True)
        if number < 0
    }
    names: list[str] = []
    with progress.task("writing rows", total=len(kept), unit="episodes") as task:

        def missing() -> Iterator[tuple[str, Sequence[KeptEpisode]]]:
            left = (KeptEpisode(unread, kept[row]) for row, unread in enumerate(unread_episodes(files)) if row in kept)
            for part in _together(left, PART):
                names.append(f"part{len(names):06d}")
                if store.find(names[-1], key) is None:
                    yield names[-1], part
                else:
                    task.advance(len(part))

        written = in_order(SecondPass(masking, store, key), missing(), workers)
        with closing(written):
            for count in written:
                task.advance(count)
    return [store.directory / name for name in names]


def _write(part: Sequence[KeptEpisode], masking: Masking | None, directory: Path) -> None:
    refused: list[dict[str, str]] = []
    tokens: dict[str, int] = {}
    num_failed = 0
    with (directory / ROWS).open("w", encoding="utf-8") as file:
        for kept in part:
            episode = kept.unread.read()
            try:
                made = rows_of_episode(episode, masking, tokens, is_wrong=kept.is_wrong)
            except DataError as error:
                refused.append({"episode": episode.id, "reason": str(error)})
                continue
            num_failed += kept.is_wrong
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    news = {"refused": refused, "tokens": tokens, "failed": num_failed}
    (directory / NEWS).write_text(json.dumps(news), encoding="utf-8")


def _together(found: Iterable[T], number: int) -> Iterator[list[T]]:
    """So many at a time, and the rest."""
    left = iter(found)
    while part := list(islice(left, number)):
        yield part


def _lines(parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        with (part / ROWS).open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def _num_lines(parts: Sequence[Path]) -> int:
    """How many rows there are, without reading what is in them."""
    total = 0
    for part in parts:
        with (part / ROWS).open("rb") as file:
            total += sum(1 for _ in file)
    return total


def _digest(files: Sequence[str | Path]) -> str:
    """sha256 over the files and the verdicts beside them, by content."""
    found = episode_files(files)
    verdicts = {path.parent / REWARDS_FILE for path in found}
    digest = hashlib.sha256()
    for path in [*found, *sorted(path for path in verdicts if path.is_file())]:
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
