"""The `burnish` command, also as `python -m burnish`: Ctrl-C ends it in one sentence, whatever it is at."""

import sys


def main() -> None:
    """Runs a command, and listens to no Ctrl-C once that has ended: people press it twice."""
    try:
        from burnish.cli import main as command

        command()
    except KeyboardInterrupt:  # while libraries were imported, or a second time
        print("burnish: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
