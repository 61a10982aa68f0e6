"""The `burnish` command, also as `python -m burnish`: Ctrl-C ends it in one sentence, whatever it is at."""

import io
import os
import sys


def main() -> None:
    """Runs a command, and listens to no Ctrl-C once that has ended: people press it twice."""
    from burnish.core.interrupts import end_interrupted, ignore, listen

    try:
        listen()
        _speak_utf8()
        from burnish.cli import main as command

        command()
    except KeyboardInterrupt:  # while libraries were imported, or a second time
        end_interrupted()
    finally:
        ignore()


def _speak_utf8() -> None:
    """Names of files are UTF-8, for the libraries below too, whatever the locale: in another encoding Python starts
    again. What a terminal cannot show is shown as an escape, not refused.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
