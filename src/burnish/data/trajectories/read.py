"""Reading episodes of agents: three forms, told apart by what is in them.

| form | files | told by |
|---|---|---|
| OpenAI | `.jsonl`, `.json`, `.parquet`, one episode a row | `messages` |
| SWE-agent | `TASK.traj` | `history` and `info` |
| OpenHands | `output.jsonl`, or a `.json` of events | events in `history`, or a list of them |

A row with `messages` may have beside them `tools`, `id`, `task` (or `instance_id`), `reward` (or `resolved`),
`repository` (or `repo`), `base_commit`, `patch`, and `exit_status`. Verdicts that lie elsewhere are read from a file
`rewards.json` in the same folder: {episode or task: number}, or a report of SWE-bench with `resolved_ids`.

Files are read in the order of their names, however they are given, one episode in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from burnish.core.checkpoint import LINEAGE_FILE
from burnish.core.errors import DataError
from burnish.core.made_data import ABOUT_FILE
from burnish.core.outside import parquet_rows, parse_json, read_bytes, read_lines, read_object
from burnish.data.forms import Chat, as_row
from burnish.data.trajectories.episode import Episode, episode, reward_of
from burnish.data.trajectories.openhands import from_openhands, is_events
from burnish.data.trajectories.swe_agent import from_swe_agent

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".traj")
REWARDS_FILE = "rewards.json"
TELLING = frozenset(
    {"history", "trajectory", "reward", "resolved", "patch", "repository", "repo", "base_commit", "instance_id"}
)
"""Keys that texts, chats and pairs do not have."""


@dataclass(frozen=True)
class Unread:
    """An episode as its file has it, small enough to go to another process and to be parsed there.

    Attributes:
        row: see `rows_of_file`.
        path: of the file.
        where: file and line, or row.
    """

    row: Any
    path: Path
    where: str

    def read(self) -> Episode:
        """The episode.

        Raises:
            DataError: it cannot be read.
        """
        return as_episode(self.row() if callable(self.row) else self.row, self.path, self.where)


def unread_episodes(files: Iterable[str | Path]) -> Iterator[Unread]:
    """What is to be read of files and folders, those of one file in its order.

    Raises:
        DataError: no file, or one that cannot be read at all.
    """
    for path in episode_files(files):
        for row, where in rows_of_file(path):
            yield Unread(row, path, where)


def episodes(files: Iterable[str | Path], *, skipped: list[str] | None = None) -> Iterator[Episode]:
    """The episodes of files and folders, those of one file in its order.

    Args:
        files: to read.
        skipped: leave out episodes that cannot be read, and put here what is wrong with each; None refuses them.

    Raises:
        DataError: no file, or an episode that cannot be read.
    """
    for unread in unread_episodes(files):
        try:
            found = unread.read()
        except DataError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        yield found


def episode_files(files: Iterable[str | Path]) -> list[Path]:
    """The files of files and folders, each once, in the order of their names.

    Raises:
        DataError: one is missing, or of no kind that can be read, or there is none.
    """
    found: set[Path] = set()
    for name in files:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = (file for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
            here = {file for file in inside if file.name not in (REWARDS_FILE, LINEAGE_FILE, ABOUT_FILE)}
            if not here:
                raise DataError(f"has no files of the kinds {', '.join(SUFFIXES)}", where=str(path))
            found |= here
        elif not path.is_file():
            raise DataError("no such file", where=str(path))
        elif not path.name.endswith(SUFFIXES):
            raise DataError("is of no kind that can be read", where=str(path), fix=f"use {', '.join(SUFFIXES)}")
        else:
            found.add(path)
    if not found:
        raise DataError("no file of episodes is named", fix="name files or a folder")
    return sorted(found)


def rows_of_file(path: Path) -> Iterator[tuple[Any, str]]:
    """Rows of a file and their places; a row may be a function that gives it, and raises where it cannot."""
    if path.suffix == ".traj":
        yield partial(read_object, path, error=DataError), str(path)
    elif path.suffix == ".parquet":
        for number, row in enumerate(parquet_rows(path), start=1):
            yield row, f"{path}, row {number}"
    elif ".jsonl" in path.name:
        for number, line in enumerate(read_lines(path), start=1):
            if line.strip():
                where = f"{path}:{number}"
                yield partial(parse_json, line, where=where, error=DataError), where
    else:
        content = parse_json(read_bytes(path), where=str(path), error=DataError)
        if isinstance(content, list) and not is_events(content):
            for number, row in enumerate(content, start=1):
                yield row, f"{path}, row {number}"
        else:
            yield content, str(path)


def as_episode(row: Any, path: Path, where: str) -> Episode:
    """An episode out of a row in one of the three forms.

    Raises:
        DataError: it is in none of them, or something in it is wrong; the message says what.
    """
    stem = path.name.partition(".")[0]
    if is_events(row):
        row = {"history": row}
    if not isinstance(row, Mapping):
        raise DataError("is neither an object nor a list of events", where=where)
    if row.get("messages") is not None:
        said, facts = row["messages"], _openai_facts(row)
    elif is_events(row.get("history")) and "info" not in row:
        said, facts = from_openhands(row, stem, where)
    elif "history" in row or path.suffix == ".traj":
        said, facts = from_swe_agent(row, stem, where)
    else:
        raise DataError(
            "has neither `messages`, nor `history` as SWE-agent and OpenHands write it",
            where=where,
            fix="write episodes as {messages, reward, repository, base_commit, patch}",
        )
    chat = as_row({"messages": said, "tools": facts.pop("tools", None) or row.get("tools")}, where=where)
    if not isinstance(chat, Chat):
        raise DataError("has no messages", where=where)
    found = episode(chat, facts, where=where)
    verdicts = path.parent / REWARDS_FILE
    if found.reward is None and verdicts.is_file():
        rewards = _rewards(verdicts, verdicts.stat().st_mtime_ns)
        return replace(found, reward=rewards.get(found.id, rewards.get(found.task)))
    return found


def _openai_facts(row: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "id": ("id", "episode", "trajectory_id"),
        "task": ("task", "instance_id"),
        "reward": ("reward", "resolved"),
        "repository": ("repository", "repo"),
        "commit": ("base_commit", "commit"),
        "patch": ("patch", "model_patch", "git_patch"),
        "ending": ("exit_status", "ending"),
    }
    return {name: next((row[key] for key in keys if row.get(key) is not None), None) for name, keys in names.items()}


@cache
def _rewards(path: Path, changed: int) -> dict[str, float]:
    """The verdicts of a folder, read once as long as their file was changed at that time."""
    found = read_object(path, error=DataError)
    if isinstance(resolved := found.get("resolved_ids"), list):
        judged = {
            str(name) for key in ("submitted_ids", "completed_ids", "unresolved_ids") for name in found.get(key) or ()
        }
        return dict.fromkeys(judged, 0.0) | {str(name): 1.0 for name in resolved}
    return {
        name: reward for name, value in found.items() if (reward := reward_of(value, f"{path}, {name}")) is not None
    }


def holds_episodes(reference: str | Path) -> bool:
    """Whether files hold what `episodes` reads and texts, chats and pairs do not: rewards, patches, places."""
    path = Path(reference).expanduser()
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
        return any(file.suffix == ".traj" for file in inside) or (bool(inside) and holds_episodes(inside[0]))
    if path.suffix == ".traj":
        return path.is_file()
    if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        return False
    row = next((row for row, _ in rows_of_file(path)), None)
    row = row() if callable(row) else row
    return is_events(row) or (isinstance(row, dict) and not TELLING.isdisjoint(row))
