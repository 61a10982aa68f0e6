"""Faults in lines that matter are found by the quick tests of their room: tests/mutations.toml, one at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MUTATIONS: list[dict[str, Any]] = tomllib.loads((ROOT / "tests" / "mutations.toml").read_text())["mutation"]
FAILED = 1
"""Exit status of pytest where a test failed; others say that it could not run them."""


def mutant_of(text: str, mutation: dict[str, Any]) -> str:
    assert text.count(mutation["old"]) == 1, f"{mutation['file']} has changed: {mutation['old']!r}"
    return text.replace(mutation["old"], mutation["new"])


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation["says"])
def test_the_line_is_as_the_list_says(mutation: dict[str, Any]):
    source = ROOT / "src" / "burnish" / mutation["file"]
    compile(mutant_of(source.read_text(), mutation), mutation["file"], "exec")
    assert all((ROOT / place).exists() for place in mutation["tests"])


def test_the_newest_run_found_every_fault_of_the_list():
    """Committed after a run of the long test below; a new line in the list asks for another run."""
    run = json.loads((ROOT / "tests" / "mutated.json").read_text())
    assert run["found"] == run["faults"]
    assert list(run["found_by"]) == [mutation["says"] for mutation in MUTATIONS]


@pytest.mark.long
@pytest.mark.real_process
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation["says"])
def test_a_fault_is_found_by_the_quick_tests_of_its_room(mutation: dict[str, Any], tmp_path: Path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    mutated = tmp_path / "src" / "burnish" / mutation["file"]
    mutated.write_text(mutant_of(mutated.read_text(), mutation))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow and not long", "-p", "no:cacheprovider"]
    command += ["-o", f"pythonpath={tmp_path / 'src'} tests tests/core", "--basetemp", str(tmp_path / "temporary")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(tmp_path / "src")
    done = subprocess.run(
        [*command, *mutation["tests"]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == FAILED, f"nobody noticed that {mutation['says']}\n{done.stdout[-2000:]}"
