"""The audit as one self-contained HTML page: styles, script and data inline, nothing fetched."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from burnish.align.audit_settings import RANKINGS
from burnish.core import page

if TYPE_CHECKING:
    from burnish.align.audit import Audit

SORTS = {"delta": "margin_r3m", "loss": "margin_bt", "tau": "margin_aps"}
"""Each ranking sorts by the margin it falls with, so that ties at a bound are broken."""
TEXTS = ("prompt", "chosen", "rejected")
"""Columns that hold texts; pairs of one question share theirs, and the page holds each once."""
MARGIN_NAMES = {"bt": "Bradley-Terry", "r3m": "R3M", "aps": "APS"}
COLUMNS = ("wrong", "margin", "delta", "tau", "loss")
KEYS = (
    ("j↓", "next pair"),
    ("k↑", "previous pair"),
    ("1", "keep: the label is right"),
    ("2", "flip: the rejected answer is better"),
    ("3", "drop: no preference, or both unusable"),
    ("0", "undecide"),
    ("u", "next pair that is not decided"),
    ("n", "write a note"),
    ("/", "search"),
    (["Esc"], "back from a field to the pairs"),
)


def render(audit: Audit) -> str:
    """The page. Texts are data for the script, never markup: `<` is escaped, so no text can end the script element."""
    from markupsafe import Markup

    texts = {text: place for place, text in enumerate(dict.fromkeys(row[name] for row in audit.rows for name in TEXTS))}
    sample = sampling_order(len(audit.rows))
    content = {
        "id": hashlib.sha256("".join(row["key"] for row in audit.rows).encode()).hexdigest()[:12],
        "source": audit.source,
        "margins": MARGIN_NAMES,
        "columns": COLUMNS,
        "texts": list(texts),
        "pairs": [_shown(row, texts, sample[place]) for place, row in enumerate(audit.rows)],
    }
    first = audit.settings.rank_by
    rankings = sorted(
        ((f"by_{name}", title) for name, (_, title) in RANKINGS.items()), key=lambda r: r[0] != f"by_{first}"
    )
    return page.render(
        "burnish.align",
        "audit.html.j2",
        script=resources.files("burnish.align").joinpath("templates/audit.js").read_text(encoding="utf-8"),
        source=audit.source,
        summary=audit.summary(),
        can_judge=audit.judged.can_judge,
        rankings=rankings,
        keys=KEYS,
        data=Markup(json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")),
    )


def _shown(row: dict[str, Any], texts: dict[str, int], sample: int) -> dict[str, Any]:
    """A row as the script reads it: texts by number, numbers with the digits that are seen, and what sorts it."""
    shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
    sorts = {f"by_{name}": -shown[margin] for name, margin in SORTS.items()} | {"by_sample": -sample}
    if row["wrong"] is not None:
        sorts["by_unsure"] = -abs(shown["wrong"] - 0.5)
    return shown | {name: texts[row[name]] for name in TEXTS} | sorts


def sampling_order(num: int) -> list[int]:
    """When each rank's turn comes in a sample whose every beginning is spread over all ranks (van der Corput, 1935)."""
    bits = max(1, (num - 1).bit_length())
    reversed_bits = [int(f"{rank:0{bits}b}"[::-1], 2) for rank in range(num)]
    turn = {value: place for place, value in enumerate(sorted(reversed_bits))}
    return [turn[value] for value in reversed_bits]
