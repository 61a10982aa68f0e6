"""What somebody else wrote: JSON, compressed text, file names, and libraries at work on them, each with bounds.

A file from outside may be damaged or made to harm: brackets nested a hundred thousand deep, a number of a million
digits, half of a surrogate pair, a few megabytes that expand to as many gigabytes, a name that leads out of the
directory. Everything that burnish reads of others comes through here and ends in content that is safe to walk, write
out and encode, or in one sentence.
"""

from __future__ import annotations

import gzip
import json
import resource
import signal
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from burnish.core.errors import BurnishError, CheckpointError, DataError, OutputError

MAX_JSON_BYTES = 200_000_000
MAX_DEPTH = 64
MAX_DIGITS = 40
"""Of an integer; tokenizers write 10^30 where there is no limit."""

MAX_SEED = 2**32 - 1
"""What every generator takes: of torch, of numpy, of Python."""

PARQUET_ROWS = 256
"""Read at a time."""

BOMB_BYTES = 64 << 20
BOMB_RATIO = 50
"""What expands to more than `BOMB_BYTES` and to more than this many times its size is no text."""


def read_object(path: Path, *, error: type[BurnishError] = CheckpointError, fix: str | None = None) -> dict[str, Any]:
    """The JSON object in a file; `fix` is what to do where it holds none.

    Raises:
        BurnishError: of the kind `error`: not readable, too large, or not a JSON object; see `parse_json`.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            what = f"has {size:,} bytes, but no such file has more than {MAX_JSON_BYTES:,}"
            raise error(what, where=str(path), fix=fix)
        content = path.read_bytes()
    except OSError as cause:
        raise error(f"cannot be read ({cause.strerror})", where=str(path)) from None
    found = parse_json(content, where=str(path), error=error, fix=fix)
    if not isinstance(found, dict):
        raise error(f"holds {kind_of_json(found)} where {{...}} is expected", where=str(path), fix=fix)
    return found


def parse_json(
    text: str | bytes, *, where: str, error: type[BurnishError] = CheckpointError, fix: str | None = None
) -> Any:
    """The value of a JSON text; `fix` is what to do where it is none.

    Raises:
        BurnishError: of the kind `error`: not JSON or not UTF-8, nested deeper than `MAX_DEPTH`, an integer of
            more than `MAX_DIGITS` digits, or a string that is no text (half of a surrogate pair).
    """

    def integer(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise error(f"holds a number of {len(digits):,} digits", where=where, fix=fix)
        return int(digits)

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")  # editors of one system begin every file with a mark
        value = json.loads(text, parse_int=integer)
    except UnicodeDecodeError as cause:
        raise error(f"is not UTF-8 text (byte {cause.start:,} cannot be read)", where=where, fix=fix) from None
    except json.JSONDecodeError as cause:
        raise error(f"is not valid JSON ({cause})", where=where, fix=fix) from None
    except RecursionError:
        raise error(f"is nested deeper than {MAX_DEPTH} levels", where=where, fix=fix) from None
    if _is_deep(value):
        raise error(f"is nested deeper than {MAX_DEPTH} levels", where=where, fix=fix)
    if "\\u" in text and not is_text(json.dumps(value, ensure_ascii=False)):
        raise error("holds half of a surrogate pair, which is no character", where=where, fix=fix)
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def is_text(value: str) -> bool:
    """Whether a string can be written out; half of a surrogate pair cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of_json(value: Any) -> str:
    """What a JSON value is, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def read_bytes(path: Path, *, error: type[BurnishError] = DataError) -> bytes:
    """The content of a file, expanded where its name ends in `.gz`.

    Raises:
        BurnishError: of the kind `error`: no ordinary file, not readable, a damaged gzip file, or one that expands to
            far more than a text does.
    """
    return b"".join(_parts(path, error))


def read_lines(path: Path, *, error: type[BurnishError] = DataError) -> Iterator[bytes]:
    """The lines of a file as `read_bytes` reads it, without their ends, and without more than a line in memory.

    Raises:
        BurnishError: see there.
    """
    begun: list[bytes] = []
    for part in _parts(path, error):
        first, *others = part.split(b"\n")
        begun.append(first)
        for line in others:
            yield b"".join(begun)
            begun = [line]
    yield b"".join(begun)


def _parts(path: Path, error: type[BurnishError]) -> Iterator[bytes]:
    """The content, expanded, a megabyte at a time."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise error("is no ordinary file", where=str(path))
        with path.open("rb") as raw:
            packed = path.suffix == ".gz"
            file, size = gzip.GzipFile(fileobj=raw) if packed else raw, 0
            while part := file.read(1 << 20):
                size += len(part)
                if packed and size > max(BOMB_BYTES, BOMB_RATIO * raw.tell()):
                    raise error(
                        f"expands to more than {BOMB_RATIO} times its size, which no text does", where=str(path)
                    )
                yield part
    except (gzip.BadGzipFile, EOFError, zlib.error) as cause:
        raise error(f"is not a whole gzip file ({cause})", where=str(path)) from None
    except OSError as cause:
        raise error(f"cannot be read ({cause.strerror or cause})", where=str(path)) from None


def parquet_rows(path: Path, columns: Sequence[str] = (), *, error: type[BurnishError] = DataError) -> Iterator[Any]:
    """Rows of a parquet file, a few at a time: one text that is named a million times takes no room in a file.

    Args:
        path: of the file.
        columns: those of them that the file has are read; it must have one. Without names, all are.
        error: the kind of error.

    Raises:
        BurnishError: of the kind `error`: not a parquet file, none of the columns, or rows that expand to far more
            than texts do.
    """
    import pyarrow.parquet

    most, num_bytes = max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size), 0
    with answered_for("is not a parquet file, or is damaged", where=str(path), error=error):
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        wanted = [name for name in columns if name in names] if columns else names
        if not wanted:
            wish = " or ".join(f"`{name}`" for name in columns)
            raise error(f"has no column {wish} (it has {', '.join(names)})", where=str(path))
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=wanted):
            num_bytes += batch.nbytes
            if num_bytes > most:
                what = f"expands to more than {BOMB_RATIO} times its size, which no text does"
                raise error(what, where=str(path))
            yield from batch.to_pylist()


def local_path(name: str) -> Path | None:
    """The path that a name stands for, `~` included, or None where no file can have such a name."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a home that does not exist
        return None
    return path


def inside(directory: Path, name: object, *, where: str) -> Path:
    """The file that a checkpoint names, which must lie in its own directory.

    Raises:
        CheckpointError: not a relative name, or one that leads out of the directory, by itself or through a link.
    """
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise CheckpointError(f"names {shown(name)}, which is no file name", where=where)
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise CheckpointError(f"names {shown(name)}, which lies outside the checkpoint", where=where)
    check_link(directory, directory / pure)
    return directory / pure


def check_links(directory: Path) -> None:
    """Refuses a checkpoint with a link that leads out of it; the hub's cache links into its own `blobs`.

    Raises:
        CheckpointError: naming the link.
    """
    for path in directory.iterdir():
        if path.is_symlink():
            check_link(directory, path)


def check_link(directory: Path, path: Path) -> None:
    home = directory.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # models--owner--name/snapshots/<commit>/file -> ../../blobs/<hash>
        allowed.append(home.parent.parent / "blobs")
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError:
        return  # said to be missing by whoever needs it
    except (OSError, RuntimeError):
        raise CheckpointError("is a link that leads nowhere", where=str(path)) from None
    if not any(real.is_relative_to(root) for root in allowed):
        raise CheckpointError(
            f"is a link out of the checkpoint, to {real}", where=str(path), fix="put the file itself there"
        )


def shown(value: object) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextmanager
def answered_for(
    what: str,
    *,
    where: str,
    fix: str | None = None,
    error: type[BurnishError] = CheckpointError,
    quoted: bool = True,
) -> Iterator[None]:
    """Turns whatever a library raises over foreign content into one sentence.

    Libraries check little of what they read and raise whatever that leads to, down to panics of compiled code. Nothing
    of our own belongs in the block: there every error is a mistake of ours and must be seen.

    Args:
        what: what the failure means, a clause ("the tokenizer cannot be read").
        where: the file or directory.
        fix: what to do about it.
        error: the kind of error.
        quoted: whether the library's own reason is told; not where it is advice to its own callers.
    """
    try:
        yield
    except (BurnishError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as cause:  # noqa: BLE001 (a panic of compiled code is no Exception)
        _refuse(cause, f"{what} ({reason_of(cause)})" if quoted else what, where, fix, error)


@contextmanager
def bounded(seconds: float, num_bytes: int) -> Iterator[None]:
    """Ends a program of others, such as a chat template, that takes longer or needs more memory.

    It works by a signal and for the whole process, so outside the main thread nothing is bounded. A clock that somebody
    else has set goes on afterwards.

    Raises:
        RuntimeError: it was ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> NoReturn:
        raise RuntimeError(f"it takes longer than {seconds:g} seconds")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + num_bytes
    handler, began = signal.signal(signal.SIGALRM, late), time.monotonic()
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))
    try:
        yield
    except MemoryError:
        raise RuntimeError(f"it needs more than {num_bytes / 1e9:g} GB of memory") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)), every)


def _refuse(cause: BaseException, what: str, where: str, fix: str | None, error: type[BurnishError]) -> NoReturn:
    if "out of memory" in str(cause) or "can't allocate memory" in str(cause):
        raise cause  # nothing that the file did: the node says which setting to lower
    raise error(what, where=where, fix=fix) from cause


def reason_of(cause: BaseException) -> str:
    """The last line of what a library says, with the class where the line alone says nothing."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    said = lines[-1].rstrip(".") if lines else ""
    said = said if len(said) <= 200 else f"{said[:197]}..."
    named = isinstance(cause, KeyError | AttributeError | IndexError | RecursionError) or not said
    return f"{type(cause).__name__}: {said}".rstrip(": ") if named else said


def check_kind(path: Path, is_ours: Callable[[bytes], bool]) -> None:
    """Refuses to write over a file of another kind, as its beginning tells.

    Args:
        path: where a file is to be written, which need not exist; an empty one is nobody's.
        is_ours: (at most 10,000 first bytes) -> whether it is an older one of the same kind.

    Raises:
        OutputError: it is not.
    """
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if not is_ours(file.read(10_000)):
                fix = "choose another place with -o"
                raise OutputError("exists and is another kind of file", where=str(path), fix=fix)
