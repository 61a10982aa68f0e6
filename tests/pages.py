"""Following a page of the docs to the letter: what it writes is written beside a copy of the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```python\n# (in )?(src/\S+|tests/\S+)\n(.*?)```", re.DOTALL)
ENDS = {
    "src/burnish/methods.py": "\n)\n\nBESIDE_METHODS",
    "src/burnish/arch/table.py": "\n# -- mixtures of experts --",
}
"""Where what a page adds to a file goes: before this."""


class Page:
    """A page of the docs whose blocks say in their first line which file they are, or which file they go into."""

    def __init__(self, name: str) -> None:
        self.blocks: list[tuple[str, str, str]] = BLOCK.findall((ROOT / "docs" / name).read_text(encoding="utf-8"))

    @property
    def files(self) -> list[str]:
        return sorted({name for _, name, _ in self.blocks})

    @property
    def files_that_exist(self) -> list[str]:
        return sorted({name for inside, name, _ in self.blocks if inside})

    def follow(self, place: Path) -> None:
        """Makes a copy of the sources in which the page has been followed."""
        for name in ("src", "scripts", "docs"):
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        for name in ("README.md", "pyproject.toml"):
            shutil.copy(ROOT / name, place / name)
        for inside, name, text in self.blocks:
            path = place / name
            if inside:
                before = path.read_text(encoding="utf-8")
                assert before.count(ENDS[name]) == 1
                path.write_text(before.replace(ENDS[name], f"\n{text.rstrip()}{ENDS[name]}"), encoding="utf-8")
            else:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")


def run(place: Path, *command: str | Path) -> str:
    """A command over that copy, which must succeed."""
    environment = os.environ | {"PYTHONPATH": str(place / "src")}
    done = subprocess.run(list(map(str, command)), cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
