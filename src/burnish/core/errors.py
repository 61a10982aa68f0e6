"""The one family of errors: every message says what was wrong, where, and what to do.

The command line prints `str(error)` on one line and exits with status 1; `--debug` shows the traceback. Library code
raises these at the border (settings, files, recipes) and lets everything else fail loudly with its own traceback.
"""

from __future__ import annotations

from collections.abc import Mapping


class BurnishError(Exception):
    """Something the user can mend.

    Args:
        what: what was wrong, a full clause with the offending value ("bits is 9, but only 2 to 8 can be packed").
        where: the file, line, key or layer ("recipe.yaml:12, node 'quantize'").
        fix: what to do about it ("use --group-size 32 or 64").
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        place = f"{where}: " if where else ""
        advice = f"; {fix}" if fix else ""
        super().__init__(f"{place}{what}{advice}")


class SettingsError(BurnishError):
    """A setting has a wrong name, type or value, or does not fit the model."""


def refuse(wrong: Mapping[str, bool], *, where: str) -> None:
    """Refuses settings by the first sentence that holds.

    Raises:
        SettingsError: one does.
    """
    if said := next((sentence for sentence, holds in wrong.items() if holds), None):
        raise SettingsError(said, where=where)


class RecipeError(BurnishError):
    """A recipe cannot be read or planned."""


class CheckpointError(BurnishError):
    """A checkpoint is missing, incomplete, corrupt, unsafe, or of the wrong kind."""


class DataError(BurnishError):
    """A text, a preference file or an event table is missing, empty, malformed or too short."""


class OutputError(BurnishError):
    """The place to write to is taken, not ours, read-only or full."""


class EngineError(BurnishError):
    """A named engine has no kernel, or no loader, for what was asked."""


class NumericalError(BurnishError):
    """A value that must be finite is not; the message names the layer or parameter."""


class StageError(BurnishError):
    """A stage's process ended without a result."""


class MissingExtraError(BurnishError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed",
            fix=f"pip install 'burnish[{extra}]'",
        )


class CheckpointWarning(UserWarning):
    """Something that a checkpoint asks for and does not get."""


def remade(kind: type[BurnishError], what: str, *, where: str | None, fix: str | None) -> BurnishError:
    """An error of this kind from its parts; a missing package keeps its sentence and loses its class."""
    return (BurnishError if kind is MissingExtraError else kind)(what, where=where, fix=fix)


def located(error: BurnishError, where: str) -> BurnishError:
    """The same error with its place in the recipe before what it names itself."""
    whole = f"{where}, {error.where}" if error.where else where
    return remade(type(error), error.what, where=whole, fix=error.fix)


def nearest(word: str, candidates: list[str]) -> str | None:
    """The candidate a person most likely meant, or None when none is close."""
    import difflib

    matches = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return matches[0] if matches else None
