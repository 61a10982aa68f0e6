"""The audit as one self-contained HTML page: styles, script and data inline, nothing fetched."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from burnish.align.audit import Audit

SORTS = {"delta": "margin_r3m", "loss": "margin_bt", "tau": "margin_aps"}
"""Each ranking sorts by the margin it falls with, so that ties at a bound are broken."""

COLUMNS = [["margin", "margin"], ["delta", "delta"], ["tau", "tau"], ["loss", "loss"]]


def render(audit: Audit) -> str:
    """The page. Texts are data for the script, never markup: `<` is escaped, so no text can end the script element."""
    import jinja2
    from markupsafe import Markup

    from burnish.align.audit import MARGINS, RANKINGS

    rows = []
    for row in audit.rows:
        rows.append(row | {f"by_{name}": -row[margin] for name, margin in SORTS.items()})
    identity = hashlib.sha256("".join(row["key"] for row in audit.rows).encode()).hexdigest()[:12]
    content = {
        "id": identity,
        "source": audit.source,
        "margins": list(MARGINS),
        "columns": COLUMNS,
        "pairs": rows,
    }
    first = audit.settings.rank_by
    rankings = sorted(
        ((f"by_{name}", title) for name, (_, title) in RANKINGS.items()), key=lambda r: r[0] != f"by_{first}"
    )
    data = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = resources.files("burnish.align").joinpath("templates/audit.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        source=audit.source, summary=audit.summary(), rankings=rankings, data=Markup(data)
    )
