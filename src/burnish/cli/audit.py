"""`burnish audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from burnish.align.audit_settings import AuditSettings
from burnish.cli.options import Options

_DEFAULTS = AuditSettings.parse({}, where="defaults")


def audit(
    preferences: str,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    model: str | None = None,
    decisions: Path | None = None,
    known: Path | None = None,
    soften: Path | None = None,
    settings: Options[AuditSettings] = _DEFAULTS,
    on_bad_pair: Literal["refuse", "drop"] = "refuse",
    limit: int | None = None,
    columns: str | None = None,
    device: str = "auto",
) -> None:
    """Rank preference pairs by how much a model doubts their labels, on a page where a person decides.

    An interrupted audit continues when the same command is given again. Then open audit/index.html, decide, export, and
    carry the decisions out with --decisions.

    Parameters
    ----------
    preferences:
        The pairs: .jsonl, .jsonl.gz, .json, .parquet, or a hub id.
    out:
        The directory of the page and its JSON lines; with --decisions or --soften, the cleaned file.
    model:
        The checkpoint that reads the answers.
    decisions:
        An export of the page, to be carried out instead of auditing.
    known:
        An export of the page whose kept and flipped pairs correct the probabilities of all others; at least 20.
    soften:
        Directory of an audit whose probabilities become soft labels of the pairs that --decisions leaves open.
    on_bad_pair:
        What to do with empty or identical pairs.
    limit:
        Audit this many pairs only.
    columns:
        Names of the file's columns, as prompt=THEIRS,chosen=THEIRS,rejected=THEIRS.
    device:
        auto, cpu, cuda or cuda:N.
    """
    from burnish.core.apart import check_apart
    from burnish.core.errors import SettingsError
    from burnish.data.preferences import read_pairs, write_pairs

    work_dir = out.with_name(f"{out.name}.work")
    check_apart([out, work_dir], [preferences, model, decisions, known, soften])
    pairs = read_pairs(preferences, on_bad_pair=on_bad_pair, limit=limit, columns=columns)
    if pairs.unread:
        print(f"not read, though the pairs have no prompt: {', '.join(pairs.unread)}; --columns prompt=NAME names it")
    if decisions is not None or soften is not None:
        if known is not None:
            raise SettingsError(
                "corrects the probabilities of a new audit, and --decisions and --soften carry out one that was made",
                where="--known",
                fix="audit again with --known first",
            )
        from burnish.align.decisions import apply_decisions

        cleaned, counts = apply_decisions(pairs, decisions, audit=soften)
        print(f"{write_pairs(cleaned, out)}: {', '.join(f'{count} {name}' for name, count in counts.items())}")
        return
    if model is None:
        raise SettingsError("no model is named", where="--model", fix="burnish audit PREFS --model DIRECTORY -o OUT")
    from burnish.align.audit import audit_pairs, check_place
    from burnish.align.decisions import decisions_of, labels_known
    from burnish.core.checkpoint import compute_dtype, load, pick_device
    from burnish.core.progress import Progress
    from burnish.core.store import Store

    check_place(out)
    decided = None if known is None else labels_known(decisions_of(pairs, known))
    place = pick_device(device)
    reader = load(model, dtype=compute_dtype(place), device=place)
    found = audit_pairs(pairs, reader, settings, progress=Progress(), work_dir=work_dir, decided=decided)
    page = found.write(out)
    Store(work_dir).clear()
    print(found.summary())
    print(f"page: {page}")
