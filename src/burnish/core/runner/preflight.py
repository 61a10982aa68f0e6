"""What would stop a run after hours of work, tried before its first stage starts.

A run ends with a save of what was there at its start: configuration, tokenizer, settings of generation. So they are
saved once, to nowhere, beforehand. Every place to write to is opened; weights are compared with configurations by the
headers of their files; and every stage tries what it can try without weights (`Stage.preflight`), with the tokenizer
that will be there, on the first rows of its data.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.core.checkpoint import Model, check_fits, load, resolve, without_memory, write_config
from burnish.core.checkpoint.dialect import check_same, in_words_of
from burnish.core.checkpoint.generation import read_generation_config
from burnish.core.errors import BurnishError, CheckpointWarning, located
from burnish.core.outside import answered_for
from burnish.core.recipe import START

if TYPE_CHECKING:
    from burnish.core.runner.plan import Decision, Planner


def preflight(planner: Planner, decisions: list[Decision]) -> None:
    """Raises what would stop one of the nodes that are to run; writes nothing that stays.

    Args:
        planner: of the recipe.
        decisions: with their plans.

    Raises:
        BurnishError: with the place in the recipe.
    """
    running = [decision for decision in decisions if decision.action == "run"]
    if not running:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        start = load(planner.start)
    check_fits(planner.start)
    dry_save(start)
    plans = {decision.node.name: decision.plan for decision in decisions} | {START: start.plan()}
    for decision in running:
        node, stage = decision.node, decision.stage
        before = plans[node.parent]
        assert before is not None, "every decision has been planned"
        try:
            for _, to, value in stage.named():
                if to == "checkpoint" and not planner.made_here(to, value):
                    check_fits(resolve(value))
            if not planner.data_to_come(node):
                stage.preflight(start, before)
        except BurnishError as error:
            raise located(error, planner.where(node.name)) from None
    if planner.evaluate is not None:
        try:
            planner.evaluate.preflight(start, start.plan())
        except BurnishError as error:
            raise located(error, planner.where(START)) from None


def dry_save(model: Model) -> None:
    """Saves everything but weights to a directory that is gone afterwards.

    Raises:
        CheckpointError: the configuration, tokenizer or settings of generation could not be written later.
    """
    assert model.path is not None, "what is in memory only was not read from outside"
    read_generation_config(model.path)
    with tempfile.TemporaryDirectory(prefix="burnish-") as scratch:
        directory = Path(scratch)
        new = model.config_on_disk(without_memory(model.config, model.lineage.kind))
        write_config(directory, new)
        written = in_words_of(model.path, json.loads((directory / "config.json").read_text()))
        if written is not None:
            check_same(written, new, str(model.path / "config.json"))
        if model.has_tokenizer:
            tokenizer = model.tokenizer
            with answered_for("the tokenizer can be read, but not be written again", where=str(model.path)):
                tokenizer.save_pretrained(directory)
