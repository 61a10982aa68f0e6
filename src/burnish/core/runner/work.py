"""What an interrupted node has left in RUN/work/NAME, and whether it may go on from there.

    RUN/work/NAME/node.json    what the node was when it began, by named parts; which of them have changed on the way
    RUN/work/NAME/...          entries of stores, each with a key of its own

Nothing is deleted because something has changed. Where what is kept is a state of the very result (a training's), the
node is refused until a person has said what shall become of it; anything else is keyed by what it depends on, and its
store says what no longer fits.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.core.checkpoint import write_atomically
from burnish.core.errors import CheckpointError, SettingsError
from burnish.core.outside import read_object
from burnish.core.store import KEY_FILE, differences

NODE_FILE = "node.json"
KEPT_DIRECTORIES = ("adapter", "tracking")
"""What a training writes for people and for other programs, beside its losses."""
RESTART = "to start again and lose that pass --restart"


@dataclass
class Work:
    """The work directory of one node.

    Attributes:
        directory: RUN/work/NAME.
        changeable: of the node's stage.
    """

    directory: Path
    changeable: frozenset[str] | None
    begun: dict[str, Any] | None = field(init=False)

    def __post_init__(self) -> None:
        self.begun = _begun(self.directory / NODE_FILE)

    @property
    def holds_a_state(self) -> bool:
        """Whether there is something to go on from, beyond what is kept whatever changes."""
        if self.changeable is None:
            return False
        for _, directories, files in os.walk(self.directory):  # it goes past what a running node removes meanwhile
            if KEY_FILE in files:
                return True
            directories[:] = [name for name in directories if not name.startswith(".")]
        return False

    def changes(self, parts: dict[str, Any]) -> dict[str, str]:
        """{part: how} the node differs from the one that was interrupted, in as many of its parts as are known."""
        if not self.holds_a_state:
            return {}
        if self.begun is None:
            return {"beginning": f"another version of burnish began it, or its {NODE_FILE} is damaged"}
        return differences({name: value for name, value in self.begun["parts"].items() if name in parts}, parts)

    def check(self, parts: dict[str, Any], *, with_changes: bool, where: str) -> None:
        """Refuses to go on with other settings or inputs than before, unless that is wanted and can be.

        Raises:
            SettingsError: it names what changed and what to do.
        """
        changes = self.changes(parts)
        fixed = [name for name in changes if name not in (self.changeable or ())]
        if not changes or (with_changes and not fixed):
            return
        said = f"was interrupted, and is not what it was ({'; '.join(changes.values())})"
        if self.begun is None:
            advice = RESTART
        elif fixed:
            advice = f"{' and '.join(fixed)} cannot change on the way: set it as it was, or {RESTART}"
        else:
            advice = f"to go on from where it stopped pass --continue-with-changes, {RESTART}"
        raise SettingsError(said, where=where, fix=advice)

    def begin(self, parts: dict[str, Any]) -> frozenset[str]:
        """Writes down what the node is now; returns which parts have changed since what it may go on from was made."""
        before = self.begun["changed"] if self.begun is not None and self.holds_a_state else []
        changed = sorted({*before, *self.changes(parts)})
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory / NODE_FILE, json.dumps({"parts": parts, "changed": changed}, indent=2))
        return frozenset(changed)

    def finish(self, logs: Path) -> None:
        """Deletes everything but what people read, which goes to `logs` under the name of the node.

        That is `*.jsonl`, and the directories in `KEPT_DIRECTORIES`.
        """
        directories = [self.directory / name for name in KEPT_DIRECTORIES if (self.directory / name).is_dir()]
        for kept in sorted([*self.directory.glob("*.jsonl"), *directories]):
            logs.mkdir(parents=True, exist_ok=True)
            place = logs / f"{self.directory.name}.{kept.name}"
            if place.is_dir():  # of an earlier run of the node
                shutil.rmtree(place)
            kept.replace(place)
        self.clear()

    def clear(self) -> None:
        """Deletes everything; the node starts again."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _begun(file: Path) -> dict[str, Any] | None:
    """What a node was when it began, or None where that is not known."""
    try:
        content = read_object(file) if file.is_file() else {}
    except CheckpointError:
        return None
    whole = isinstance(content.get("parts"), dict) and isinstance(content.get("changed"), list)
    return content if whole else None
