"""The audit as one self-contained HTML page: styles, script and data inline, nothing fetched."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING

from burnish.align.audit_settings import MARGINS, RANKINGS
from burnish.core import page

if TYPE_CHECKING:
    from burnish.align.audit import Audit

SORTS = {"delta": "margin_r3m", "loss": "margin_bt", "tau": "margin_aps"}
"""Each ranking sorts by the margin it falls with, so that ties at a bound are broken."""
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

    content = {
        "id": hashlib.sha256("".join(row["key"] for row in audit.rows).encode()).hexdigest()[:12],
        "source": audit.source,
        "margins": list(MARGINS),
        "columns": COLUMNS,
        "pairs": [row | {f"by_{name}": -row[margin] for name, margin in SORTS.items()} for row in audit.rows],
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
