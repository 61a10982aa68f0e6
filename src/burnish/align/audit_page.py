"""The audit as one self-contained HTML page: styles, script and data inline, nothing fetched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

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
SURE = 0.02
MOST_ANNOTATORS = 50
"""Rows of their table; the ledger has all."""
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
    sample = sampling_order([0.5 if row["wrong"] is None else row["wrong"] for row in audit.rows])
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
        decided=audit.judged.decided,
        rankings=rankings,
        annotators=[
            (name, f"{number:,}", f"{found.value:.1%}", f"{found.low:.1%} to {found.high:.1%}")
            for name, (number, found) in list(audit.annotators.items())[:MOST_ANNOTATORS]
        ],
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


def sampling_order(wrong: Sequence[float]) -> list[int]:
    """When each rank's turn comes in a sample whose every beginning is spread over all ranks, denser where in doubt.

    A decided pair tells as much as its answer was open: ranks are drawn in proportion to sqrt(p (1 - p)) (Neyman,
    1934), p being their probability of a wrong label, of which nobody is surer than SURE. Van der Corput's sequence
    (1935) is mapped through the cumulated shares; what it has not met after a few rounds comes last, by rank.
    """
    p = np.clip(np.asarray(wrong, dtype=np.float64), SURE, 1 - SURE)
    ends = np.cumsum(np.sqrt(p * (1 - p)))
    bits = max(3, len(p).bit_length() + 3)
    places = np.arange(2**bits)
    mirrored = sum(((places >> bit) & 1) << (bits - 1 - bit) for bit in range(bits))
    met = np.searchsorted(ends, (mirrored + 0.5) / 2**bits * ends[-1])
    order = np.fromiter(dict.fromkeys([*met.tolist(), *range(len(p))]), dtype=np.int64)
    turn = np.empty(len(p), dtype=np.int64)
    turn[order] = np.arange(len(p))
    return turn.tolist()
