"""Every command that README and docs show is one, with these options and values of the right types; and every option
that a message or an advice names is there.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

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


OTHERS = ("methods.py", "engines.py", "up.py", "keys.py")
"""Files that name options of benchmarks and of vLLM."""


def options(place: App = app) -> Iterator[str]:
    """Of every command; of what is in parts, such as `--overrides.NAME.bits`, the first."""
    for name in place:
        if not name.startswith("-"):
            yield from options(place[name])
    for argument in place.assemble_argument_collection() if place.default_command else ():
        yield from (option.partition(".")[0] for option in argument.names)


def named() -> dict[str, str]:
    """{option that a string of the sources names: where}, without docstrings and what is for pip."""
    found = {}
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and file.name not in OTHERS:
                said = re.sub(r"pip install( --[a-z-]+)+", "", node.value)
                found |= dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z-]+", said), f"{file.name}:{node.lineno}")
    return found


def test_an_option_that_a_message_names_is_there():
    said, known = named(), {*options(), "--debug", "--help", "--version"}
    assert len(said) > 50
    assert {option: where for option, where in said.items() if option not in known} == {}
