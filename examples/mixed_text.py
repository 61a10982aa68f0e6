"""Prose and programs in equal parts, to calibrate and distil on: WikiText-2 valid and Python's standard library.

    python examples/mixed_text.py runs/mixed-text

A model that is fitted to one kind of text gets worse on others. Both are cut at ends of lines into pieces of about
4,000 characters; of the library as many are drawn, with a seed, as WikiText-2 has, and the two kinds take turns.
"""

from __future__ import annotations

import json
import random
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from burnish.data import read_texts

PIECE = 4000
"""Characters, of which the last line may be more."""


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """Every text in pieces of whole lines."""
    for text in texts:
        lines: list[str] = []
        for line in text.splitlines(keepends=True):
            lines.append(line)
            if sum(map(len, lines)) >= PIECE:
                yield "".join(lines)
                lines = []
        if lines:
            yield "".join(lines)


def library() -> Iterator[str]:
    """Modules of Python's standard library."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="ignore")


def main(out: str) -> None:
    Path(out).mkdir(parents=True, exist_ok=True)
    prose = list(pieces(read_texts("wikitext2-valid")))
    programs = random.Random(0).sample(list(pieces(library())), len(prose))
    with (Path(out) / "text.jsonl").open("w", encoding="utf-8") as rows:
        for pair in zip(prose, programs, strict=True):
            for text in pair:
                rows.write(json.dumps({"text": text}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
