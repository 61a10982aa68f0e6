"""The label audit: which preference pairs deserve a second look, and why.

A frozen model reads every answer; a linear reward on those features is cross-fitted with three losses, so no pair is
scored by a reward that has seen its label. A pair is suspicious when the reward contradicts its label:

    margin_bt     Bradley-Terry: the plain loss, softplus(-margin), beside the others
    margin_r3m    R3M, whose fit a few wrong labels cannot bend far; delta = max(t_lambda - margin, 0)
    margin_aps    APS; tau says how clear the pair is to the reward, so a contradicted pair with a large tau is
                  confidently contradicted

    audit = audit_pairs(read_pairs("prefs.jsonl"), burnish.load("models/smollm2"))
    audit.write("audit")                         # audit/pairs.jsonl and audit/index.html
    cleaned, counts = apply_decisions(pairs, "decisions.json")         # burnish.align.decisions

Confident learning ("Confident Learning: Estimating Uncertainty in Dataset Labels", 2021, arXiv 1911.00068) has the same
idea for classes; the losses are those of arXiv 2406.15568 and arXiv 2406.02764.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from burnish.align.answer_features import hidden_features, word_features
from burnish.align.audit_settings import MARGINS, RANKINGS, AuditSettings
from burnish.align.decisions import pair_key
from burnish.align.kept_arrays import KeptArrays
from burnish.align.linear_reward import cross_fitted_margins, rotated, unit_scale
from burnish.align.losses import aps, bt, r3m
from burnish.core.checkpoint import write_atomically
from burnish.core.errors import DataError, OutputError
from burnish.core.progress import Progress
from burnish.core.store import digest_of
from burnish.data.preferences import Pairs
from burnish.data.prompts import question_groups, split_prompt

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model

PAIRS_FILE, PAGE_FILE = "pairs.jsonl", "index.html"


@dataclass
class Audit:
    """Pairs with their scores, the most suspicious first.

    Attributes:
        rows: one per pair: rank, place, row, prompt, chosen, rejected, margins, delta, tau, loss, weight, reasons.
        source: the name of the preference file.
        settings: how it was made.
        model: the name of the model that read the answers.
        dropped: rows that were left out when the file was read.
    """

    rows: list[dict[str, Any]]
    source: str
    settings: AuditSettings
    model: str
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def contradicted(self) -> int:
        """Pairs whose label the ranking's reward contradicts."""
        return sum(row["margin"] < 0 for row in self.rows)

    def summary(self) -> str:
        left_out = sum(self.dropped.values())
        tail = f"; {left_out:,} unusable rows left out" if left_out else ""
        return (
            f"{len(self.rows):,} pairs read by {self.model}, {self.settings.repeats} x "
            f"{self.settings.folds}-fold cross-fitted; {self.contradicted:,} labels contradicted{tail}"
        )

    def write(self, directory: str | Path) -> Path:
        """Writes pairs.jsonl and index.html, and returns the page.

        Raises:
            OutputError: the directory holds something else, or cannot be written.
        """
        from burnish.align.audit_page import render

        target = Path(directory)
        check_place(target)
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in self.rows)
        try:
            target.mkdir(parents=True, exist_ok=True)
            write_atomically(target / PAIRS_FILE, lines)
            write_atomically(target / PAGE_FILE, render(self))
        except OSError as error:
            raise OutputError(f"could not be written ({error.strerror})", where=str(target)) from None
        return target / PAGE_FILE


def check_place(target: Path) -> None:
    """Refuses a directory where an audit would be mixed with other files.

    Raises:
        OutputError: `target` is a file, or a directory that holds anything but an audit.
    """
    if target.exists() and not target.is_dir():
        raise OutputError("is a file", where=str(target), fix="name a directory with -o")
    if target.is_dir() and {path.name for path in target.iterdir()} - {PAIRS_FILE, PAGE_FILE}:
        raise OutputError("exists and holds other files", where=str(target), fix="choose another place with -o")


def audit_pairs(
    pairs: Pairs,
    model: Model,
    settings: AuditSettings | None = None,
    *,
    progress: Progress | None = None,
    work_dir: Path | None = None,
) -> Audit:
    """Scores every pair by rewards that have not seen its label, and ranks them.

    Args:
        pairs: what is audited.
        model: reads the answers; a causal language model or a sequence classifier.
        settings: how; the defaults when not given.
        progress: for the bars.
        work_dir: of a store of what is finished, so that an interrupted audit of the same pairs, model and settings
            continues and ends bit-equal. The caller clears it afterwards.

    Raises:
        DataError: fewer prompts than folds.
    """
    settings, progress = settings or AuditSettings(), progress or Progress(enabled=False)
    split = [split_prompt(row) for row in pairs.rows]
    groups = question_groups(pairs.rows)
    _check(settings, len(set(groups)), pairs.source)
    read, fitted = KeptArrays(), KeptArrays()
    if work_dir is not None:
        key = {"model": model.identity, "pairs": digest_of({"pairs": split})}
        scoring = settings.model_dump(mode="json", exclude={"rank_by"})
        read = KeptArrays(work_dir, key | {name: scoring[name] for name in ("depths", "max_length")})
        fitted = KeptArrays(work_dir, key | scoring | {"groups": digest_of({"groups": groups})})
    differences = answer_differences(model, split, settings, progress, read)
    margins = fit_margins(differences, groups, settings, progress=progress, kept=fitted)
    return _assemble(pairs, split, margins, settings, model.name)


def answer_differences(
    model: Model,
    split: Sequence[tuple[str, str, str]],
    settings: AuditSettings,
    progress: Progress,
    kept: KeptArrays | None = None,
) -> Any:
    """Features of chosen minus rejected, each block scaled to |d| about 1; an answer that recurs is read once."""
    place: dict[tuple[str, str], int] = {}
    for prompt, chosen, rejected in split:
        place.setdefault((prompt, chosen), len(place))
        place.setdefault((prompt, rejected), len(place))
    first = np.array([place[prompt, chosen] for prompt, chosen, _ in split])
    second = np.array([place[prompt, rejected] for prompt, _, rejected in split])
    hidden = hidden_features(
        model, list(place), depths=settings.depths, max_length=settings.max_length, progress=progress, kept=kept
    )
    dense = unit_scale(hidden[first] - hidden[second])
    if not settings.words:
        return dense
    words = word_features(model, [answer for _, answer in place])
    return combine(dense, unit_scale(words[first] - words[second]))


def combine(dense: np.ndarray, words: sparse.csr_matrix) -> sparse.csr_matrix:
    """Both blocks side by side with equal weight; word columns that no pair uses are left out."""
    used = np.flatnonzero(np.asarray(abs(words).sum(axis=0)).ravel())
    return sparse.csr_matrix(sparse.hstack([sparse.csr_matrix(dense), words[:, used]]))


def fit_margins(
    differences: Any,
    groups: Sequence[str],
    settings: AuditSettings,
    *,
    progress: Progress | None = None,
    kept: KeptArrays | None = None,
) -> dict[str, np.ndarray]:
    """{loss: cross-fitted margins, [repeats, pairs]}; the three losses see the same folds."""
    progress, kept = progress or Progress(enabled=False), kept or KeptArrays()
    differences = rotated(differences)

    def fit(name: str) -> np.ndarray:
        return cross_fitted_margins(
            differences,
            groups,
            name,
            l2=settings.l2,
            num_folds=settings.folds,
            num_repeats=settings.repeats,
            generator=torch.Generator().manual_seed(settings.seed),
            lam=settings.lam,
            rho0=settings.rho0,
            tau0=settings.tau0,
            tau_max=settings.tau_max,
        )

    margins = {}
    with progress.task("cross-fitting", total=len(MARGINS), unit="losses") as task:
        for name in MARGINS:
            margins[name] = kept.array(f"margins-{name}", lambda name=name: fit(name))
            task.advance()
    return margins


def _assemble(
    pairs: Pairs,
    split: Sequence[tuple[str, str, str]],
    margins: dict[str, np.ndarray],
    settings: AuditSettings,
    model_name: str,
) -> Audit:
    mean = {name: torch.from_numpy(values.mean(axis=0)) for name, values in margins.items()}
    plain, plain_found = bt(mean["bt"])
    _, robust = r3m(mean["r3m"], lam=settings.lam)
    _, scaled = aps(mean["aps"], rho0=settings.rho0, tau0=settings.tau0, tau_max=settings.tau_max)
    deciding = RANKINGS[settings.rank_by][0]
    # every score falls with its margin; at a bound (delta = 0, tau = tau_max) only the margin tells pairs apart
    order = np.argsort(mean[deciding].numpy(), kind="stable")
    against = margins[deciding] < 0
    opposite = _opposite_labels(split, pairs)
    rows = []
    for rank, index in enumerate(order.tolist(), start=1):
        prompt, chosen, rejected = split[index]
        numbers = {f"margin_{name}": float(mean[name][index]) for name in MARGINS}
        row = {
            "rank": rank,
            "key": pair_key(prompt, chosen, rejected, pairs.numbers[index]),
            "row": pairs.numbers[index],
            "place": f"row {pairs.numbers[index]}",
            "margin": numbers[f"margin_{deciding}"],
            **numbers,
            "loss": float(plain[index]),
            "weight": float(plain_found["weight"][index]),
            "delta": float(robust["delta"][index]),
            "tau": float(scaled["tau"][index]),
            "prompt": prompt,
            "chosen": chosen.strip(),
            "rejected": rejected.strip(),
        }
        row["signed_tau"] = float(np.copysign(row["tau"], -numbers["margin_aps"]))
        row["reasons"] = _reasons(row, against[:, index], opposite.get(index), rank, len(order))
        rows.append(row)
    return Audit(rows, pairs.source, settings, model_name, pairs.dropped)


def _reasons(row: dict[str, Any], against: np.ndarray, opposite: int | None, rank: int, total: int) -> list[str]:
    """Why a pair deserves a second look, in words, the strongest reason first."""
    reasons = []
    if opposite is not None:
        reasons.append(f"the same two answers are labelled the other way in row {opposite}")
    votes = int(against.sum())
    if votes:
        reasons.append(f"{votes} of {len(against)} cross-fitted rewards prefer the answer labelled worse")
        if row["delta"] > 0 and rank <= max(1, total // 20):
            reasons.append(f"among the {max(1, round(100 * rank / total))} % most suspicious")
        signs = {row[f"margin_{name}"] < 0 for name in MARGINS}
        if signs == {True}:
            reasons.append("all three losses agree")
    elif row["delta"] > 0:
        reasons.append("the label is supported, but weakly")
    else:
        reasons.append("nothing: the reward agrees with the label")
    lengths = [len(row[side].split()) for side in ("chosen", "rejected")]
    if votes and min(lengths) > 0 and max(lengths) >= 3 * min(lengths):
        shorter = "chosen" if lengths[0] < lengths[1] else "rejected"
        reasons.append(f"the {shorter} answer is much shorter ({min(lengths)} against {max(lengths)} words)")
    return reasons


def _opposite_labels(split: Sequence[tuple[str, str, str]], pairs: Pairs) -> dict[int, int]:
    """{index: place of the row that labels the same two answers the other way}."""
    seen: dict[tuple[str, str, str], int] = {}
    for index, (prompt, chosen, rejected) in enumerate(split):
        seen.setdefault((prompt, chosen, rejected), index)
    return {
        index: pairs.numbers[seen[prompt, rejected, chosen]]
        for index, (prompt, chosen, rejected) in enumerate(split)
        if (prompt, rejected, chosen) in seen
    }


def _check(settings: AuditSettings, num_groups: int, source: str) -> None:
    if num_groups < settings.folds:
        raise DataError(
            f"has {num_groups} different questions, but {settings.folds} folds need at least as many",
            where=source,
            fix="lower the number of folds, or give more pairs",
        )
