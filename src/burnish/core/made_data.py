"""`Data`: rows that a stage makes in place of a checkpoint, for other nodes to name where they name data.

class Hardest(Stage):
    makes_data = True
    def run(self, model, ctx): return Data({"text": text} for text in ...)

DIRECTORY/rows.jsonl      a JSON object a line, as the readers of data take it
DIRECTORY/*.html          pages that show the rows, where their maker gives some; no reader of data takes them
DIRECTORY/about.json      what was counted while they were made, where their maker says so; no reader of data takes it
DIRECTORY/burnish.json    where it comes from, as of a checkpoint; its content hash is what other nodes depend on
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.core.checkpoint import Lineage, check_target, hash_directory, library_versions
from burnish.core.checkpoint.durable import saving
from burnish.core.errors import DataError
from burnish.core.kinds import Kind

ROWS_FILE = "rows.jsonl"
ABOUT_FILE = "about.json"


@dataclass
class Data:
    """Rows: texts, chats, preference pairs, problems.

    Attributes:
        rows: JSON objects; they may be made while they are written.
        lineage: where they come from.
        about: what was counted while they were made.
        pages: (name, content) of pages that show the rows, asked for once all are written.
    """

    rows: Iterable[Mapping[str, Any]]
    lineage: Lineage = field(default_factory=lambda: Lineage(kind=Kind.DATA))
    about: Mapping[str, Any] | None = None
    pages: Iterable[tuple[str, str]] = ()

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the rows atomically and returns their directory.

        Raises:
            DataError: there is no row.
            OutputError: the directory exists and burnish did not make it, or it did and `overwrite` is not given; or
                there is no room, or no permission.
        """
        target = Path(directory)
        check_target(target, overwrite=overwrite)
        with saving(target, replace=overwrite) as staging:
            with (staging / ROWS_FILE).open("w", encoding="utf-8") as file:
                count = 0
                for row in self.rows:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    count += 1
            if not count:
                raise DataError("no row was made", where=str(target))
            if self.about is not None:
                (staging / ABOUT_FILE).write_text(json.dumps(self.about, indent=1, ensure_ascii=False), "utf-8")
            for name, content in self.pages:
                (staging / name).write_text(content, "utf-8")
            self.lineage.files = hash_directory(staging)
            self.lineage.versions = library_versions()
            self.lineage.write(staging)
        return target
