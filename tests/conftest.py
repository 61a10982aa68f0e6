"""What the whole suite shares: checked shapes, one thread, two checkpoints."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy
import pytest
import torch
from jaxtyping import install_import_hook

import burnish
from burnish.core.runner import process
from exact import AllFloat64
from small_models import small_llama, small_tokenizer
from warm import ServedNode, popen_of

# Shapes and dtypes in the signatures of the mathematics are checked at every call of the suite.
pytest_plugins = ["cost"]

REPOSITORY = Path(__file__).resolve().parent.parent
MATHS = [f"burnish.{maths.parent.name}.maths" for maths in sorted((REPOSITORY / "src" / "burnish").glob("*/maths"))]
install_import_hook(MATHS, "beartype.beartype")

torch.set_num_threads(1)

# What runs in a shell's background is deaf to Ctrl-C, and under nohup to SIGHUP; every child would inherit that.
for number, ours in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, ours)

# How long an example takes says something of the machine and of what else it does, not of the code.
hypothesis.settings.register_profile(
    "burnish", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("burnish")


def _draw_from(name: str) -> None:
    """What draws without a seed of its own draws the same whatever ran before it, on whichever worker."""
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    numpy.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed keeps a stack trace for a GPU that is not in use
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def pytest_collection_finish() -> None:
    """What has been imported stays: collections of garbage need not walk through it again."""
    gc.collect()
    gc.freeze()


def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    _draw_from(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    _draw_from(item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def _children_find_the_package() -> None:
    """Stages run in processes of their own, which must find the package as this one does."""
    places = [str(Path(burnish.__file__).parent.parent), str(REPOSITORY / "tests" / "core")]
    places += [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    os.environ["PYTHONPATH"] = os.pathsep.join(places)


@pytest.fixture(scope="session", autouse=True)
def _no_certificates(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test speaks TLS, and every client of an endpoint would read all certificates of the system."""
    os.environ["SSL_CERT_DIR"] = str(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def _nodes_are_forked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of a runner in this process do not import everything anew, except where starting them is what is tested."""
    if request.node.get_closest_marker("real_process") is None:
        monkeypatch.setattr(process, "subprocess", popen_of(ServedNode))


@pytest.fixture
def all_float64() -> Iterator[None]:
    """Models in float64 compute in float64 throughout (see `exact`)."""
    with AllFloat64():
        yield


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory of `small_llama` with its tokenizer, as a hub would hold it."""
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    small_llama().save_pretrained(directory)
    small_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded real model, converted once by `make test` or by hand."""
    directory = REPOSITORY / "models" / "smollm2"
    if not (directory / "burnish.json").is_file():
        pytest.skip("the embedded model is not here; run `burnish fetch smollm2 --out models/smollm2`")
    return directory


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a file system of a size such as "300k", or gives it another size; skips where mounting is not allowed."""
    place = tmp_path / "disk"

    def sized(size: str) -> Path:
        remount = "remount," if place.exists() else ""
        place.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"{remount}size={size}", "tmpfs", place])
        if done.returncode != 0:
            pytest.skip("mounting a small file system is not allowed here")
        return place

    yield sized
    if place.is_mount():
        subprocess.run(["umount", "--lazy", place], check=True)  # a database in it may still be open
