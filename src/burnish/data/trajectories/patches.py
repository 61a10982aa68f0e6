"""Final changes as unified diffs: whether two are the same change, and which files they touch."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

HUNK = re.compile(r"^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
HEADER = re.compile(r"^diff -{2}git ")
TEST_FOLDERS = frozenset({"test", "tests", "__tests__", "spec"})
TEST_NAME = re.compile(r"^(test_.*|.*_test|.*[.-](test|spec)|conftest|.*Tests?)$")


def changes(patch: str) -> dict[str, list[str]]:
    """{file: its lines that were taken out (-) and put in (+)}, white space within lines and at their ends made one.

    Places within a file, lines of context and the hashes that git writes are left out, for they differ between the
    same change made at two times.
    """
    found: dict[str, list[str]] = {}
    file, old, new = "", 0, 0
    for line in patch.splitlines():
        if old > 0 or new > 0:
            mark = line[:1]
            old -= mark in ("-", " ", "")
            new -= mark in ("+", " ", "")
            if mark in ("+", "-"):
                found.setdefault(file, []).append(mark + " ".join(line[1:].split()))
        elif hunk := HUNK.match(line):
            old, new = (int(count) if count is not None else 1 for count in hunk.groups())
        elif HEADER.match(line):
            file = _name(line.split(" ")[-1])
            found.setdefault(file, [])
        elif line.startswith(("+++ ", "--- ")) and not line.startswith("+++ /dev/null"):
            name = _name(line[4:].split("\t")[0])
            if name != "/dev/null":
                file = name
                found.setdefault(file, [])
    return found


def is_empty(patch: str | None) -> bool:
    """Whether nothing is changed: no file is named, and there is no text that could be one in another form."""
    return not (patch or "").strip()


def patch_digest(patch: str) -> str:
    """The same for the same change; text that is no diff counts as it is, but for white space."""
    found = changes(patch)
    lines = [f"{file}\n{line}" for file in sorted(found) for line in found[file] or [""]] or patch.split()
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def touched_tests(patch: str) -> list[str]:
    """The files of tests that a change touches."""
    return [file for file in changes(patch) if is_test_file(file)]


def is_test_file(name: str) -> bool:
    """By the habits of pytest, unittest, jest, Go and JUnit: a folder of tests, or a name that says so."""
    path = PurePosixPath(name)
    return not TEST_FOLDERS.isdisjoint(path.parts[:-1]) or TEST_NAME.match(path.stem) is not None


def _name(name: str) -> str:
    return re.sub(r"^[ab]/", "", name.strip())
