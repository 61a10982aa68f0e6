"""Every command that README and docs show is one, with these options and values of the right types."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from burnish.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[str]:
    """Lines of code that begin with the command, joined where they go on."""
    text = re.sub(r"\\\n\s+", "", page.read_text(encoding="utf-8"))
    fenced, found = False, []
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if (fenced or line.startswith("    ")) and re.match(r"\s*burnish [a-z]+ ", line):
            found.append(line.strip())
    return found


SHOWN = [
    pytest.param(command, id=f"{page.stem}: {command[:60]}")
    for page in PAGES
    if not page.stem.startswith("add-")  # what a reader makes there has tests of its own
    for command in commands(page)
]


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_of_the_docs_is_one(command: str):
    words = shlex.split(command, comments=True)[1:]
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_there_are_as_many_as_a_reader_sees():
    assert len(SHOWN) > 60
