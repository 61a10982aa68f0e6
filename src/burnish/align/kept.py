"""Arrays kept on disk as they are made, so that work that was killed goes on where it stopped and ends bit-equal."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from burnish.core.checkpoint import fsync
from burnish.core.errors import OutputError


class Kept:
    """A directory of finished arrays that belong to one piece of work, or, without a directory, nothing.

    Args:
        directory: made when the first array is finished; arrays kept there for other work are removed then, and
            nothing else.
        identity: everything that the arrays depend on, as JSON can write it.

    Raises:
        OutputError: an array cannot be written.
    """

    def __init__(self, directory: Path | None = None, identity: Any = None) -> None:
        content = json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()
        self.directory = directory
        self.place = None if directory is None else directory / f"kept-{hashlib.sha256(content).hexdigest()[:16]}"

    def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array called `name`: read where it is finished, else made and kept."""
        if self.place is None:
            return make()
        path = self.place / f"{name}.npy"
        if path.is_file():
            return np.load(path, allow_pickle=False)
        made = make()
        try:
            self._claim()
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, made, allow_pickle=False)
            fsync(partial)
            partial.replace(path)
        except OSError as error:
            raise OutputError(f"could not be written ({error.strerror})", where=str(path)) from None
        return made

    def remove(self) -> None:
        """The work is done: what was kept goes, and the directory with it if it holds nothing else."""
        if self.directory is None or not self.directory.is_dir():
            return
        for place in self.directory.glob("kept-*"):
            shutil.rmtree(place)
        if not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _claim(self) -> None:
        assert self.place is not None
        if not self.place.is_dir():
            self.remove()
            self.place.mkdir(parents=True)
