"""Directories and small files that appear whole or not at all, whatever kills the process that writes them.

What is written goes to a temporary sibling whose name carries the writer's process id, is fsynced, and is renamed. The
leftovers of a dead writer are told by that id and removed by the next one.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from burnish.core.errors import OutputError

SET_ASIDE = ".old"
"""Marks a directory that was taken away to put a new one in its place."""
NO_ROOM = (*map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)), "No space left", "full disk", "disk is full")
"""What systems, and libraries of ours, say of a disk on which there is no room."""
AT_WORKING_DIRECTORY, EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2."""


def staging_directory(target: Path) -> Path:
    """An empty temporary sibling of `target`; leftovers of dead processes are removed first."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        staging = target.parent / f".{target.name}.{os.getpid()}.tmp"
        staging.mkdir()
    except OSError as error:
        raise OutputError(
            f"cannot be created ({error.strerror})", where=str(target), fix="choose another place with -o"
        ) from None
    return staging


def remove_leftovers(target: Path) -> None:
    """Deletes temporary siblings whose process no longer lives."""
    _remove_of_dead_writers(target.parent.glob(f".{glob.escape(target.name)}.*.tmp"))


def remove_leftovers_inside(directory: Path) -> None:
    """Deletes the temporary files and directories in a directory of ours whose process no longer lives."""
    _remove_of_dead_writers(directory.glob(".*.tmp"))


def _remove_of_dead_writers(paths: Iterable[Path]) -> None:
    for leftover in paths:
        name = leftover.name.removesuffix(".tmp")
        place, _, writer = name.removesuffix(SET_ASIDE).rpartition(".")
        if not writer.isdigit():
            continue  # not a name of ours
        if int(writer) != os.getpid() and _is_alive(int(writer)):
            continue
        target = leftover.parent / place.removeprefix(".")
        if name.endswith(SET_ASIDE) and not target.exists():
            leftover.rename(target)  # its writer died between taking the old away and putting the new in its place
        elif leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """One that has ended and was not yet asked for its status writes nothing any more."""
    import psutil

    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def publish(staging: Path, target: Path, *, replace: bool = True) -> None:
    """Makes a finished temporary directory appear under its name, durably, in the place of an older one of ours.

    Whatever fails or is killed on the way, the name stands for the old directory or the new one, or the next writer's
    sweep makes it stand for the old one again.

    Raises:
        OutputError: without `replace`, another process has put something there in the meantime.
    """
    for path in staging.rglob("*"):
        if path.is_file():
            path.chmod(0o644)  # safetensors writes for the owner alone, but a checkpoint is meant to be shared
        fsync(path)
    fsync(staging)
    if _took_free_name(staging, target):
        pass
    elif not replace:
        raise OutputError(
            "was made by another process in the meantime, and stays as that made it",
            where=str(target),
            fix="choose another place with -o, or pass --overwrite",
        )
    elif _exchanged(staging, target):
        shutil.rmtree(staging)
    else:
        old = target.parent / f".{target.name}.{os.getpid()}{SET_ASIDE}.tmp"
        target.rename(old)
        try:
            staging.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old)
    fsync(target.parent)


@contextmanager
def saving(target: Path, *, replace: bool) -> Iterator[Path]:
    """A directory to write into, which takes the place of `target` at the end; an error leaves what was there.

    Raises:
        OutputError: no room, or no permission; or, without `replace`, another process was faster.
    """
    from safetensors import SafetensorError

    staging = staging_directory(target)
    try:
        yield staging
        publish(staging, target, replace=replace)
    except (OSError, SafetensorError) as error:
        cause = cause_of(error)
        raise OutputError(
            f"could not be written ({cause})",
            where=str(target),
            fix=f"{remedy(cause)} or choose another place; nothing was left behind",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def cause_of(error: Exception) -> str:
    """What a disk has to say, out of an error of Python, of pyarrow or of safetensors; others are raised again."""
    if not isinstance(error, OSError) and "os error" not in str(error):
        raise error
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error).split("I/O error: ")[-1].removeprefix("Error while serializing: ")


def remedy(cause: str) -> str:
    """What to do about it: room is asked for only where room was missing."""
    full = any(text in cause for text in NO_ROOM)
    return "free some space" if full else "see that the place is there and can be written"


def check_place(target: Path) -> None:
    """Opens the place of a checkpoint for writing.

    Raises:
        OutputError: a link, a name that no file can have, or a directory that cannot be written to.
    """
    if target.is_symlink():
        raise OutputError(f"is a link, to {target.readlink()}", where=str(target), fix="name the place itself with -o")
    try:
        parent = next(path for path in target.absolute().parents if path.exists())
        probe = parent / f".{target.name}.{os.getpid()}{SET_ASIDE}.tmp"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise OutputError(
            f"cannot be created ({error.strerror})", where=str(target), fix="choose another place with -o"
        ) from None


def _took_free_name(staging: Path, target: Path) -> bool:
    """Whether the name was free, or an empty directory's, and is the new one's now."""
    try:
        staging.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two directories have exchanged their names in one step, which not every system and disk can do."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_WORKING_DIRECTORY, os.fsencode(one), AT_WORKING_DIRECTORY, os.fsencode(other), EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a small file so that a reader sees the old text or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place whole at the end; an error leaves what was there.

    Raises:
        OutputError: no room, or no permission.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
    except OSError as error:
        cause = cause_of(error)
        advice = f"{remedy(cause)} or choose another place"
        raise OutputError(f"could not be written ({cause})", where=str(path), fix=advice) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
