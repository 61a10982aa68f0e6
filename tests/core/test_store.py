"""The store: whole entries or none, found by everything that they depend on, and never lost to a change of the key."""

import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from burnish.core.checkpoint import durable
from burnish.core.errors import CheckpointError, OutputError
from burnish.core.store import KEY_FILE, Store, differences, digest_of

KEY = {"model": "a" * 64, "text": "b" * 64, "seed": 0}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "sums")


def put(store: Store, name: str, text: str, key: dict[str, object] = KEY) -> None:
    with store.writing(name, key) as path:
        (path / "content").write_text(text)


def test_what_was_written_is_found_by_its_key(store: Store):
    assert store.find("one", KEY) is None
    put(store, "one", "content")
    found = store.find("one", KEY)
    assert found is not None
    assert (found / "content").read_text() == "content"
    assert store.names() == ["one"]


def test_a_key_with_tuples_is_found_again(store: Store):
    put(store, "one", "content", {"shape": (2, 3)})
    assert store.find("one", {"shape": (2, 3)}) is not None


def test_another_key_is_refused_by_name_of_its_parts_and_nothing_is_deleted(store: Store):
    put(store, "one", "content")
    other = KEY | {"text": "c" * 64, "seed": 7}
    with pytest.raises(CheckpointError, match=r"text: not the same; seed was 0, now 7"):
        store.find("one", other)
    with pytest.raises(CheckpointError), store.writing("one", other):
        pass
    assert store.find("one", KEY) is not None


@given(st.dictionaries(st.text(max_size=5), st.integers(), max_size=5), st.text(max_size=5), st.integers())
def test_a_part_that_is_new_gone_or_changed_differs(key: dict[str, int], name: str, value: int):
    assert differences(key, key) == {}
    changed = key | {name: value}
    assert set(differences(key, changed)) == ({name} if key.get(name) != value else set())
    assert set(differences(changed, key)) == set(differences(key, changed))
    assert (digest_of(key) == digest_of(changed)) == (key == changed)


def test_advice_to_delete_an_entry_of_another_key_works(store: Store):
    put(store, "one", "content")
    with pytest.raises(CheckpointError, match=f"delete {store.directory} to make it anew"):
        store.find("one", {"model": "c" * 64})
    shutil.rmtree(store.directory)
    put(store, "one", "new", {"model": "c" * 64})


def test_a_damaged_key_is_said_and_the_advice_works(store: Store):
    put(store, "one", "content")
    (store.directory / "one" / KEY_FILE).write_text("{")
    with pytest.raises(CheckpointError, match="can be read; delete it") as caught:
        store.find("one", KEY)
    shutil.rmtree(str(caught.value.where))
    put(store, "one", "new")


def test_an_error_while_writing_leaves_nothing(store: Store):
    with pytest.raises(RuntimeError), store.writing("one", KEY) as path:
        (path / "content").write_text("a part")
        raise RuntimeError
    assert list(store.directory.iterdir()) == []


def _write_and_be_killed(store: Store) -> None:
    with store.writing("one", KEY) as path:
        (path / "content").write_text("a part")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_in_the_middle_leaves_nothing_that_looks_finished_and_the_next_writer_sweeps(store: Store):
    process = multiprocessing.get_context("fork").Process(target=_write_and_be_killed, args=(store,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(store.directory.iterdir())) == 1  # what it had begun
    assert store.find("one", KEY) is None
    assert store.names() == []
    put(store, "two", "content")
    assert [path.name for path in store.directory.iterdir()] == ["two"]


def test_everything_is_on_disk_before_the_entry_has_its_name(store: Store, monkeypatch: pytest.MonkeyPatch):
    synced: list[str] = []
    real = durable.fsync

    def noted(path: Path) -> None:
        name = path.name if not path.name.startswith(".") else "staging"
        synced.append(name if not (store.directory / "one").exists() else f"{name} after")
        real(path)

    monkeypatch.setattr(durable, "fsync", noted)
    with store.writing("one", KEY) as path:
        (path / "inner").mkdir()
        (path / "inner" / "content").write_text("content")
    assert sorted(synced[:3]) == ["content", "inner", KEY_FILE]
    assert synced[3:] == ["staging", "sums after"]


def test_on_a_full_disk_nothing_is_left(store: Store, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(durable, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        put(store, "one", "content")
    assert list(store.directory.iterdir()) == []


def test_an_entry_of_the_same_key_is_replaced(store: Store):
    put(store, "one", "old")
    put(store, "one", "new")
    assert (store.directory / "one" / "content").read_text() == "new"
    assert [path.name for path in store.directory.iterdir()] == ["one"]


def test_an_open_entry_keeps_what_its_owner_put_in(store: Store):
    (store.open("trainer", KEY) / "state").write_text("1")
    assert (store.open("trainer", KEY) / "state").read_text() == "1"
    with pytest.raises(CheckpointError):
        store.open("trainer", {"model": "c" * 64})


def test_cleared_it_leaves_nothing_of_its_own_and_everything_else(store: Store):
    put(store, "one", "content")
    put(store, "two", "content")
    (store.directory / "notes").write_text("not ours")
    store.clear()
    assert [path.name for path in store.directory.iterdir()] == ["notes"]
    (store.directory / "notes").unlink()
    put(store, "one", "content")
    store.clear()
    assert not store.directory.exists()


# -- replacing a directory ---------------------------------------------------------------------------------------------


@pytest.fixture
def old_and_new(tmp_path: Path) -> tuple[Path, Path]:
    target = tmp_path / "out"
    target.mkdir()
    (target / "content").write_text("old")
    staging = durable.staging_directory(target)
    (staging / "content").write_text("new")
    return staging, target


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_directory_is_replaced(old_and_new: tuple[Path, Path], can_exchange: bool, monkeypatch: pytest.MonkeyPatch):
    if not can_exchange:
        monkeypatch.setattr(durable, "_exchanged", lambda one, other: False)
    staging, target = old_and_new
    durable.publish(staging, target)
    assert (target / "content").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_where_the_new_cannot_take_the_name_the_old_has_it_again(
    old_and_new: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    staging, target = old_and_new
    real = Path.rename

    def fails(path: Path, to: Path) -> Path:
        if path == staging and not to.exists():
            raise OSError(5, "Input/output error")
        return real(path, to)

    monkeypatch.setattr(durable, "_exchanged", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output error"):
        durable.publish(staging, target)
    assert (target / "content").read_text() == "old"


def test_what_another_process_has_made_in_the_meantime_is_not_replaced(old_and_new: tuple[Path, Path]):
    staging, target = old_and_new
    with pytest.raises(OutputError, match="made by another process in the meantime"):
        durable.publish(staging, target, replace=False)
    assert (target / "content").read_text() == "old"
    (target / "content").unlink()
    durable.publish(staging, target, replace=False)  # an empty directory is nobody's
    assert (target / "content").read_text() == "new"


def _be_killed_between_the_renames(staging: Path, target: Path) -> None:
    real = Path.rename

    def killed(path: Path, to: Path) -> Path:
        if path == staging and not to.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, to)

    Path.rename = killed  # type: ignore[method-assign]
    durable._exchanged = lambda one, other: False
    durable.publish(staging, target)


def test_the_next_sweep_puts_back_the_old_directory_of_a_writer_that_died_in_between(old_and_new: tuple[Path, Path]):
    staging, target = old_and_new
    process = multiprocessing.get_context("fork").Process(target=_be_killed_between_the_renames, args=(staging, target))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not target.exists()
    durable.remove_leftovers(target)
    assert (target / "content").read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_the_exchange_is_one_step_where_the_disk_can(old_and_new: tuple[Path, Path]):
    staging, target = old_and_new
    if not durable._exchanged(staging, target):
        pytest.skip("this disk cannot exchange names")
    assert (staging / "content").read_text() == "old"
    assert (target / "content").read_text() == "new"


def test_a_key_file_is_plain_json(store: Store):
    put(store, "one", "content")
    assert json.loads((store.directory / "one" / KEY_FILE).read_text()) == KEY


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(28, "No space left on device", "a file"), "No space left on device"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "No space left on device (os error 28)",
        ),
        (OSError("Error writing bytes to file. Detail: [errno 28] No space left"), "Error writing bytes to file."),
    ],
)
def test_a_disk_that_is_full_is_said_whatever_library_notices(tmp_path: Path, error: Exception, cause: str):
    saving = durable.saving(tmp_path / "directory", replace=False)
    with pytest.raises(OutputError, match=re.escape(f"could not be written ({cause}")), saving:
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_error_names_the_file_that_could_not_be_written_and_leaves_the_old(tmp_path: Path):
    (tmp_path / "place").write_text("old")
    replacing = durable.replacing(tmp_path / "place")
    with pytest.raises(OutputError, match=r"place: could not be written \(No space left on device"), replacing as file:
        file.write_text("a half")
        raise OSError(28, "No space left on device", str(file))
    assert (tmp_path / "place").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_room_is_asked_for_only_where_room_is_missing(tmp_path: Path):
    for number, advice in ((28, "free some space"), (13, "see that the place is there and can be written")):
        error = OSError(number, os.strerror(number), "a file")
        with pytest.raises(OutputError, match=f"{advice} or choose another"), durable.replacing(tmp_path / "file"):
            raise error
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match="see that the place is there"):
        durable.write_atomically(tmp_path / "link" / "file", "text")


def test_an_error_of_safetensors_that_is_not_of_the_disk_is_none_of_it(tmp_path: Path):
    with pytest.raises(SafetensorError, match="header"), durable.saving(tmp_path / "directory", replace=False):
        raise SafetensorError("Error while serializing: invalid header")
