"""The commands of stages: `burnish quantize MODEL -o OUT` and its sisters, made from the rows of `burnish.methods`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from burnish.cli.options import Options
from burnish.cli.run import Flag, run_single
from burnish.core.stage import Stage
from burnish.methods import VERBS, Verb
from burnish.stages import stage_class

Out = Annotated[Path, Parameter(name=["--out", "-o"])]


def stage_command(verb: Verb) -> Callable[..., None]:
    """The command of a stage: every setting is an option, and what is not given keeps its default."""
    settings_class = stage_class(verb.name)
    # Defaults are not validated here: settings that cannot do without a value are refused, with the place and in one
    # sentence, by the recipe that the command becomes.
    defaults = settings_class.model_construct()

    def command(
        model: str,
        /,
        *,
        out: Out,
        settings: Stage = defaults,
        evaluate: bool = False,
        overwrite: Flag = False,
        continue_with_changes: Flag = False,
        restart: Flag = False,
    ) -> None:
        how = {"overwrite": overwrite, "with_changes": continue_with_changes, "restart": restart}
        run_single(settings, model, out, evaluate=evaluate, **how)

    command.__annotations__["settings"] = Options[settings_class]
    command.__doc__ = f"""{verb.help}

    Parameters
    ----------
    model:
        A checkpoint directory or hub id.
    out:
        Where the {verb.makes} goes; ledger and report go to OUT.run beside it.
    evaluate:
        Measure before and after.
    overwrite:
        Replace a checkpoint that burnish made there earlier.
    continue_with_changes:
        Go on from what an interrupted run has left with settings that have changed, where the stage can.
    restart:
        Delete what an interrupted run has left, and start again.
    """
    return command


def __getattr__(name: str) -> Callable[..., None]:
    """The command of the stage of that name, so that the command line can name it without importing its settings."""
    if name not in VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return stage_command(VERBS[name])
