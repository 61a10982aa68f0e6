"""Arrays kept on disk as they are made, so that work that was killed goes on where it stopped and ends bit-equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from burnish.core.errors import OutputError
from burnish.core.store import Store, digest_of

ARRAY_FILE = "array.npy"


class KeptArrays:
    """Finished arrays of one piece of work, in a store; without a directory nothing is kept.

    Arrays of other work may have the same names in the same directory: an entry is named by its key too.

    Args:
        directory: of the store.
        key: everything that the arrays depend on, by named parts.
    """

    def __init__(self, directory: Path | None = None, key: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.store = None if directory is None else Store(directory)
        self.key = dict(key)
        self.digest = digest_of(self.key)[:16]

    def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array called `name`: read where it is finished, else made and kept.

        Raises:
            OutputError: it cannot be written.
        """
        if self.store is None:
            return make()
        entry = f"{name}-{self.digest}"
        found = self.store.find(entry, self.key)
        if found is not None:
            return np.load(found / ARRAY_FILE, allow_pickle=False)
        made = make()
        try:
            with self.store.writing(entry, self.key) as path:
                np.save(path / ARRAY_FILE, made, allow_pickle=False)
        except OSError as error:
            raise OutputError(f"could not be written ({error.strerror})", where=str(self.store.directory)) from None
        return made
