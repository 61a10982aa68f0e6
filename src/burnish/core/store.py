"""One keyed, atomic store for whatever is kept so as not to be computed twice, or to go on from after a kill.

    store = Store(ctx.work_dir / "statistics")
    key = {"model": model.identity, "text": calibration.hash, "seed": settings.seed}
    if (entry := store.find("layer003-fold1", key)) is None:
        with store.writing("layer003-fold1", key) as path:
            save_file(sums, path / "sums.safetensors")

    DIRECTORY/layer003-fold1/key.json            what it depends on, by named parts
    DIRECTORY/layer003-fold1/sums.safetensors    whatever was written

The key holds everything that the content depends on. An entry of another key is refused with the parts that differ,
and nothing is deleted: what it took hours to compute may still be wanted. An entry is written beside its place, fsynced
and renamed, so a killed process leaves nothing that looks finished; the next writer in the directory removes what dead
ones left. In one directory one thread of a process writes at a time; different processes may write at once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from burnish.core.checkpoint.durable import publish, remove_leftovers, remove_leftovers_inside, staging_directory
from burnish.core.errors import CheckpointError

KEY_FILE = "key.json"
READABLE = 40
"""Characters up to which a value of a key is shown; hashes are longer."""

Key = Mapping[str, Any]
"""Named parts, each a JSON value."""


class Store:
    """The entries of one directory, which is made with the first of them.

    Args:
        directory: where they lie.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, name: str, key: Key) -> Path | None:
        """The directory of a finished entry, or None where there is none.

        Raises:
            CheckpointError: the entry is of another key, or its key file is damaged; it stays as it is.
        """
        path = self.directory / name
        if not path.is_dir():
            remove_leftovers(path)  # puts back an entry whose writer died while it took a new one's place
            if not path.is_dir():
                return None
        check_same(read_key(path), key, path)
        return path

    @contextmanager
    def writing(self, name: str, key: Key) -> Iterator[Path]:
        """An empty directory for the content, which becomes the entry at the end, in place of one of the same key.

        An error inside leaves nothing.

        Raises:
            CheckpointError: there is an entry of another key.
            OutputError: the directory cannot be made.
            OSError: no room; only the caller knows what that means.
        """
        path = self.begin(name, key)
        try:
            yield path
            self.finish(path, name)
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def begin(self, name: str, key: Key) -> Path:
        """`writing` in two steps, for content that other processes or threads write: the directory to write into."""
        self.find(name, key)
        if self.directory.is_dir():
            remove_leftovers_inside(self.directory)
        path = staging_directory(self.directory / name)
        try:
            (path / KEY_FILE).write_text(json.dumps(key, indent=2, sort_keys=True), encoding="utf-8")
        except OSError:
            shutil.rmtree(path)
            raise
        return path

    def finish(self, path: Path, name: str) -> Path:
        """The second step: the directory that `begin` gave becomes the entry; returns its place."""
        publish(path, self.directory / name)
        return self.directory / name

    def open(self, name: str, key: Key) -> Path:
        """The directory of an entry that its owner fills over time, made where it is missing.

        For what another library writes and takes up in its own way: the key is checked here, wholeness is its matter.
        """
        found = self.find(name, key)
        if found is not None:
            return found
        with self.writing(name, key):
            pass
        return self.directory / name

    def names(self) -> list[str]:
        """Of all finished entries, in order."""
        return sorted(path.parent.name for path in self.directory.glob(f"*/{KEY_FILE}") if path.parent.name[0] != ".")

    def remove(self, name: str) -> None:
        """Deletes an entry; it is gone as a whole, whatever stops the deletion."""
        doomed = staging_directory(self.directory / name)
        (self.directory / name).rename(doomed)
        shutil.rmtree(doomed)

    def clear(self) -> None:
        """Deletes all entries, and the directory if it then holds nothing else."""
        for name in self.names():
            self.remove(name)
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()


def digest_of(key: Key) -> str:
    """sha256 of a key, for those who must name something by it."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def read_key(path: Path) -> dict[str, Any]:
    """The key of the entry in a directory.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        key = json.loads((path / KEY_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        key = None
    if not isinstance(key, dict):
        raise CheckpointError(f"has no {KEY_FILE} that can be read", where=str(path), fix="delete it to make it anew")
    return key


def differences(kept: Key, wanted: Key) -> dict[str, str]:
    """{part: how it differs} of two keys: values where a person can read them, else that they are not the same."""
    wanted = json.loads(json.dumps(wanted))  # tuples are lists in a file
    found = {}
    for name in [*wanted, *(name for name in kept if name not in wanted)]:
        was, now = kept.get(name), wanted.get(name)
        if was != now:
            readable = max(len(json.dumps(value)) for value in (was, now)) <= READABLE
            found[name] = f"{name} was {was}, now {now}" if readable else f"{name}: not the same"
    return found


def check_same(kept: Key, wanted: Key, path: Path) -> None:
    """Refuses what belongs to another key, and says which parts differ and how."""
    if found := differences(kept, wanted):
        raise CheckpointError(
            f"was made with other inputs or settings ({'; '.join(found.values())})",
            where=str(path),
            fix=f"delete {path.parent} to make it anew, as --restart does, or name another place",
        )
