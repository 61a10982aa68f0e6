"""Kill -9 at random moments, a full disk: afterwards the same command gives the uninterrupted result, bit for bit.

The commands are those of a person, in processes of their own; the moments are drawn over the whole length of an
undisturbed run, so they fall into start-up, planning, the work itself and the saving.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish.core.checkpoint import hash_directory

pytestmark = pytest.mark.slow

RECIPE = """
start: {model}
nodes:
  - {{name: nearest, stage: quantize, method: rtn, bits: 4, group_size: 32}}
  - {{name: gptq, from: start, stage: quantize, method: gptq, bits: 3, group_size: 32, tokens: 2048}}
"""


def burnish(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "burnish.cli", *map(str, arguments)]


def checkpoints(run: Path) -> dict[str, dict[str, str]]:
    """{node: {file: sha256}} of everything that a run made."""
    return {path.name: hash_directory(path) for path in sorted((run / "nodes").iterdir())}


@pytest.fixture(scope="module")
def recipe(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "two.yaml"
    path.write_text(RECIPE.format(model=tiny_llama))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing stopped, and how long it took."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    started = time.monotonic()
    subprocess.run(burnish("run", recipe, "-o", directory), check=True, capture_output=True)
    return directory, time.monotonic() - started


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_a_run_ends_with_the_same_bits(
    recipe: Path, undisturbed: tuple[Path, float], tmp_path: Path, seed: int
):
    """Ten kills per seed, each of a fresh or continued run; nothing that was finished is made again."""
    reference, length = undisturbed
    moments = random.Random(seed)
    run = tmp_path / "run"
    finished_at: dict[str, int] = {}
    for _ in range(10):
        process = subprocess.Popen(
            burnish("run", recipe, "-o", run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=moments.uniform(0, length))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for name, made in _finished(run).items():
            assert finished_at.setdefault(name, made) == made, f"{name} was finished and was made again"
        if set(_finished(run)) == {"nearest", "gptq"}:
            finished_at.clear()
            shutil.rmtree(run)
    subprocess.run(burnish("run", recipe, "-o", run), check=True, capture_output=True)
    assert checkpoints(run) == checkpoints(reference)
    leftovers = [path.name for path in (run / "nodes").iterdir() if path.name not in ("nearest", "gptq")]
    assert leftovers == []


def _finished(run: Path) -> dict[str, int]:
    """{node: time its weights were written} of the checkpoints that are there under their names."""
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in run.glob("nodes/*/model.safetensors")
        if not path.parent.name.startswith(".")
    }


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; skipped where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system is not allowed here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_one_sentence_and_the_run_continues_with_more_room(
    recipe: Path, undisturbed: tuple[Path, float], small_disk: Path
):
    run = small_disk / "run"
    first = subprocess.run(burnish("run", recipe, "-o", run), capture_output=True, text=True)
    assert first.returncode == 1
    assert "No space left on device" in first.stderr
    assert "Traceback" not in first.stderr
    assert {path.name for path in run.glob("nodes/*")} <= {"nearest"}, "a checkpoint is there whole or not at all"
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    subprocess.run(burnish("run", recipe, "-o", run), check=True, capture_output=True)
    assert checkpoints(run) == checkpoints(undisturbed[0])


def test_a_read_only_place_is_one_sentence(recipe: Path, tmp_path: Path):
    place = tmp_path / "sealed"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a read-only file system is not allowed here")
    try:
        done = subprocess.run(burnish("run", recipe, "-o", place / "run"), capture_output=True, text=True)
        assert done.returncode == 1
        assert "Read-only file system" in done.stderr
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", place], check=True)
