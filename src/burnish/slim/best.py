"""The stock form that comes nearest to the model among several of one size, each made and measured.

No rule says which form of a mixture loses least: half of the experts' parameters as fewer and wider experts is the best
form of one model and the worst of another (`benchmarks/slim_widths.py`). So each is cut and refitted in memory, and the
forward KL of the model's distribution from it is taken on windows of text that have scored nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint import Model, move
from burnish.core.errors import DataError, SettingsError
from burnish.slim.forms import FORMS, Chosen
from burnish.slim.price import Distance
from burnish.slim.selection import Selection
from burnish.slim.sizes import new_config
from burnish.slim.split import of_single_pieces
from burnish.slim.surgery import cut
from burnish.slim.target import allowed_parameters, experts_of, fewest_experts, fit, router_groups, widest
from burnish.slim.uncut import Uncut

if TYPE_CHECKING:
    from burnish.core.kinds import Plan
    from burnish.slim.stage import Slim

PIECES = (2, 3, 4)
"""Of which those are tried whose widths are multiples: a half of GPT-OSS's experts is none of 64, a third is."""
FEWER = (7, 6, 5, 4)
"""Eighths of the experts that are kept, as wide as the target allows."""


def forms(settings: Slim, before: Plan) -> Iterator[tuple[str, Slim, Any]]:
    """(name, settings of the method, configuration) of every form of the target that the architecture can have.

    Raises:
        SettingsError: it can have none.
    """
    failed: SettingsError | None = None
    found: set[tuple[str, int, int]] = set()
    for name, changes in _changes(settings, before):
        one = settings.model_copy(update=changes)
        try:
            config = new_config(one, before)
        except SettingsError as error:
            failed = failed or error
            continue
        sizes = experts_of(config)
        key = (one.method, sizes.num_experts, sizes.intermediate_size)
        if key not in found:  # narrow may take fewer experts too
            found.add(key)
            yield name, one, config
    if not found and failed is not None:
        raise failed


def _changes(settings: Slim, before: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "narrow", {"method": "narrow", "score": "energy", "refit": "alone"}
    experts, groups = experts_of(before.config), router_groups(before.config)
    assert settings.target is not None, "the settings have one"
    allowed, step = allowed_parameters(settings.target, before), settings.multiple * settings.tp
    for pieces in PIECES:
        split = {"method": "split", "score": "energy", "pieces": pieces, "refit": "behind"}
        yield f"split in {pieces}", split
        if number := _whole_pieces(before.config, pieces, allowed, settings.num_key_value_heads):
            yield f"split in {pieces}, {number} whole pieces", split | {"target": None, "num_experts": number}
    for eighths in FEWER:
        number = experts.num_experts * eighths // 8 // groups * groups
        if number >= fewest_experts(before.config) and not experts.shares_width:
            width = widest(before.config, allowed, number, step, settings.num_key_value_heads)
            if width:
                sizes = {"target": None, "width": width, "num_experts": number}
                yield f"{number} experts of {width}", {"method": "narrow", "score": "energy", "refit": "alone"} | sizes
    yield "drop", {"method": "drop", "score": "reap", "refit": "none"}


def _whole_pieces(config: Any, pieces: int, allowed: int, num_key_value_heads: int | None) -> int:
    """How many pieces fit that are not narrowed to come within 2 % of a target; 0 where there can be none."""
    width = experts_of(config).intermediate_size // pieces
    try:
        whole = of_single_pieces(config, pieces)
        sizes = fit(whole, allowed, by="num_experts", multiple=width, num_key_value_heads=num_key_value_heads)
    except SettingsError:
        return 0  # the form before it says why
    return sizes.num_experts


def best(selection: Selection) -> tuple[Selection, Chosen]:
    """The form with the smallest divergence from the model, and what it keeps; all of them go into the ledger.

    Raises:
        DataError: the text has no windows beside those that score.
    """
    if not len(selection.unseen):
        raise DataError(
            "method best compares forms on windows of text that have scored nothing, and no window is left",
            where="calibration",
            fix="use a longer text, or fewer tokens",
        )
    distance, rows = Distance(selection.network, selection.unseen), []
    nearest: tuple[float, str, Selection, Chosen] | None = None
    for name, settings, config in forms(selection.settings, selection.model.plan()):
        one = selection.another(settings, config)
        chosen = FORMS[settings.method](one)
        kept, refitted, _ = chosen
        smaller = one.smaller or cut(Uncut(Model(module=selection.network)), config, kept, refitted)
        nats = distance(move(smaller, str(selection.network.device)))
        parameters = sum(parameter.numel() for parameter in smaller.parameters())
        rows.append({"form": name, "parameters": parameters, "nats per token": nats})
        selection.ctx.progress.log(f"{name}: {nats:.4f} nats per token from the model")
        if nearest is None or nats < nearest[0]:
            nearest = nats, name, one, chosen
    assert nearest is not None, "there is a form, or the plan was refused"
    _, name, one, chosen = nearest
    selection.ctx.ledger.table("slim forms", [row | {"chosen": row["form"] == name} for row in rows])
    selection.ctx.progress.log(f"{name} is the nearest of {len(rows)} forms, on {len(selection.unseen)} windows")
    return one, chosen
