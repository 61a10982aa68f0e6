"""The package as pip installs it: a wheel, in an environment that knows nothing of this repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import burnish

ROOT = Path(__file__).resolve().parent.parent
LINES = re.compile(r"```python\n(import burnish\n.*?)```", re.DOTALL)

pytestmark = [pytest.mark.slow, pytest.mark.real_process]


def run(*command: str | Path, cwd: Path) -> str:
    """A command away from the sources, which must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place, ROOT, cwd=place)
    (made,) = place.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel, which borrows the libraries of this one and not its burnish."""
    place = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place)
    python = place / "bin" / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=place)
    # A path in a .pth file is searched, and .pth files in there, such as that of an editable burnish, are not read.
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    where = run(python, "-c", "import burnish; print(burnish.__file__)", cwd=place)
    assert Path(where.strip()).is_relative_to(own)
    return python


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    here = {
        str(path.relative_to(source))
        for path in (source / "burnish").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert held == here


def test_the_wheel_says_what_it_is(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_string(archive.read(name).decode())
        files = archive.namelist()
    assert metadata["Name"] == "burnish"
    assert metadata["Version"] == burnish.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"gguf", "train", "align", "eval"} <= set(metadata.get_all("Provides-Extra", []))
    assert len([file for file in files if "/licenses/" in file]) == 2


def test_the_installed_command_lists_its_methods(installed: Path, tmp_path: Path):
    assert "YAQA" in run(installed.with_name("burnish"), "methods", cwd=tmp_path)


def test_the_lines_of_the_readme_run(installed: Path, tiny_llama: Path, tmp_path: Path):
    """With a small model, and windows that fit it."""
    (lines,) = LINES.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(lines.splitlines()) <= 10
    small = "burnish.Evaluate(context=64, num_windows=6, prompt_tokens=8, decode_tokens=4)"
    small_quantize = "Quantize(method='gptq', bits=4, group_size=32, tokens=2048)"
    lines = lines.replace('"MODEL"', repr(str(tiny_llama))).replace("burnish.Evaluate()", small)
    lines = lines.replace('Quantize(method="gptq", bits=4)', small_quantize)
    said = run(installed, "-c", lines, cwd=tmp_path)
    assert "kl_divergence" in said
    assert (tmp_path / "model-4bit" / "model.safetensors").is_file()
