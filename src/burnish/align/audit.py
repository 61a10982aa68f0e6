"""The label audit: whether a model can judge preference pairs at all, which deserve a second look, and why.

A frozen model reads every answer; a linear reward on those features is cross-fitted with three losses, so no pair is
scored by a reward that has seen its label. A pair is suspicious when the reward contradicts its label:

    margin_bt     Bradley-Terry: the plain loss, softplus(-margin), beside the others
    margin_r3m    R3M, whose fit a few wrong labels cannot bend far; delta = max(t_lambda - margin, 0)
    margin_aps    APS; tau says how clear the pair is to the reward, so a contradicted pair with a large tau is
                  confidently contradicted

Margins have no unit: R3M's cap lambda is set relative to them, at the weight that a given share of the pairs exceeds,
and the share is the one under which the cross-fitted labels are likeliest (`reliability`).

    audit = audit_pairs(read_pairs("prefs.jsonl"), burnish.load("models/smollm2"))
    audit.write("audit")                         # audit/pairs.jsonl and audit/index.html
    cleaned, counts = apply_decisions(pairs, "decisions.json")         # burnish.align.decisions

Confident learning ("Confident Learning: Estimating Uncertainty in Dataset Labels", 2021, arXiv 1911.00068) has the same
idea for classes; the losses are those of arXiv 2406.15568 and arXiv 2406.02764.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from burnish.align.answer_features import hidden_features, nuisance_features, word_features
from burnish.align.audit_settings import MARGINS, RANKINGS, AuditSettings
from burnish.align.decisions import PAIRS_FILE, pair_key
from burnish.align.kept_arrays import KeptArrays
from burnish.align.linear_reward import cross_fitted_margins, rotated, unit_scale
from burnish.align.losses import aps, bt, r3m
from burnish.align.recalibration import recalibrated
from burnish.align.reliability import Reliability, agreement_of, reliability
from burnish.align.repeats import find_repeats
from burnish.core.checkpoint import write_atomically
from burnish.core.errors import DataError, OutputError
from burnish.core.ledger import LEDGER_FILE, Ledger
from burnish.core.page.frame import check_page
from burnish.core.progress import Progress
from burnish.core.statistics import Interval
from burnish.core.store import digest_of
from burnish.data.preference_shapes import ANNOTATOR, RIGHT, VOTES
from burnish.data.preferences import Pair, Pairs
from burnish.data.prompts import question_groups, split_prompt

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model

PAGE_FILE = "index.html"
REPORT_FILE = "report.html"
"""What `burnish report` makes of the ledger."""

NEAR_FREE = 10.0
"""Covariates are this much larger than features, so that l2 hardly holds them."""

CAPPED = (0.05, 0.1, 0.2, 0.3)
"""Shares of pairs that may reach R3M's cap."""


@dataclass
class Audit:
    """Pairs with their scores, the most suspicious first.

    Attributes:
        rows: one per pair: rank, place, row, prompt, chosen, rejected, wrong (probability that the label was
            exchanged; null where the reader cannot judge), margins, delta, tau, loss, weight, reasons.
        source: the name of the preference file.
        settings: how it was made.
        model: the name of the model that read the answers.
        judged: whether the reader can judge these pairs, and the noise in the labels.
        lam: R3M's cap, as it was used.
        dropped: rows that were left out when the file was read.
        annotators: of each name in a column `annotator`, if there are two or more: how many pairs, and the share of
            their labels that the reader supports, the least supported first.
    """

    rows: list[dict[str, Any]]
    source: str
    settings: AuditSettings
    model: str
    judged: Reliability
    lam: float
    dropped: dict[str, int] = field(default_factory=dict)
    annotators: dict[str, tuple[int, Interval]] = field(default_factory=dict)

    @property
    def contradicted(self) -> int:
        """Pairs whose label the ranking's reward contradicts."""
        return sum(row["margin"] < 0 for row in self.rows)

    def summary(self) -> str:
        left_out = sum(self.dropped.values())
        tail = f"; {left_out:,} unusable rows left out" if left_out else ""
        return (
            f"{len(self.rows):,} pairs read by {self.model}, {self.settings.repeats} x "
            f"{self.settings.folds}-fold cross-fitted{tail}. {self.verdict}"
        )

    @property
    def verdict(self) -> str:
        """What the reader can tell about these labels, which stands before everything it says of single pairs."""
        said = str(self.judged)
        if self.judged.can_judge:
            said += f"; {self.contradicted:,} labels contradicted"
        return said[0].upper() + said[1:]

    def record(self, ledger: Ledger) -> None:
        """What the reader can tell about these labels, as a table of a ledger, which a report draws."""
        judged = self.judged
        agreement, noise = judged.agreement, judged.noise
        rate = (
            {"value": noise.value} if judged.decided else {}
        )  # without decided pairs no rate is likelier than another
        rows: list[dict[str, Any]] = [
            {"measure": "verdict", "value": "can judge" if judged.can_judge else "cannot judge these pairs"},
            {"measure": "agreement with the labels"} | vars(agreement),
            {"measure": "labels exchanged"} | rate | {"low": noise.low, "high": noise.high},
            {"measure": "AUC", "value": judged.auc},
            {"measure": "pairs", "value": len(self.rows)},
            {"measure": "pairs decided by a person", "value": judged.decided},
            {"measure": "labels contradicted", "value": self.contradicted},
            {"measure": "labels that contradict each other", "value": sum(row["conflict"] for row in self.rows)},
            {"measure": "reader", "value": self.model},
            {"measure": "data", "value": self.source},
        ]
        ledger.table("label_audit", rows)
        named = [
            {"annotator": name, "pairs": number, "agreement": found.value, "low": found.low, "high": found.high}
            for name, (number, found) in self.annotators.items()
        ]
        if named:
            ledger.table("annotators", named)

    def write(self, directory: str | Path) -> Path:
        """Writes pairs.jsonl, index.html and a row of ledger.jsonl, and returns the page.

        Raises:
            OutputError: the directory holds something else, or cannot be written.
        """
        from burnish.align.audit_page import render

        target = Path(directory)
        check_place(target)
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in self.rows)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"could not be written ({error.strerror})", where=str(target)) from None
        write_atomically(target / PAIRS_FILE, lines)
        write_atomically(target / PAGE_FILE, render(self))
        self.record(Ledger(target, node="audit"))
        return target / PAGE_FILE


def check_place(target: Path) -> None:
    """Refuses a directory where an audit would be mixed with other files.

    Raises:
        OutputError: `target` is a file, or a directory that holds anything but an audit.
    """
    if target.exists() and not target.is_dir():
        raise OutputError("is a file", where=str(target), fix="name a directory with -o")
    if target.is_dir() and {path.name for path in target.iterdir()} - {PAIRS_FILE, PAGE_FILE, LEDGER_FILE, REPORT_FILE}:
        raise OutputError("exists and holds other files", where=str(target), fix="choose another place with -o")
    for name in (PAGE_FILE, REPORT_FILE):
        check_page(target / name)
    if (target / PAGE_FILE).exists() and not (target / PAIRS_FILE).exists():
        what = f"has a page and no {PAIRS_FILE}, so that it is no audit"
        raise OutputError(what, where=str(target), fix="choose another place with -o")


def audit_pairs(
    pairs: Pairs,
    model: Model,
    settings: AuditSettings | None = None,
    *,
    progress: Progress | None = None,
    work_dir: Path | None = None,
    decided: Mapping[int, bool] | None = None,
) -> Audit:
    """Scores every pair by rewards that have not seen its label, and ranks them.

    Args:
        pairs: what is audited.
        model: reads the answers; a causal language model or a sequence classifier.
        settings: how; the defaults when not given.
        progress: for the bars.
        work_dir: of a store of what is finished, so that an interrupted audit of the same pairs, model and settings
            continues and ends bit-equal. The caller clears it afterwards.
        decided: {place of a pair: whether its label is wrong}, by a person; corrects the probabilities
            (`recalibration`).

    Raises:
        DataError: fewer prompts than folds, fewer decided pairs than a correction needs, or an annotator without a
            single name.
    """
    settings, progress = settings or AuditSettings(), progress or Progress(enabled=False)
    by_annotator = annotators_of(pairs)
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
    covariates = NEAR_FREE * nuisance_differences(split) if settings.nuisance == "remove" else None
    margins, lam = fit_margins(differences, groups, settings, progress=progress, kept=fitted, covariates=covariates)
    deciding = margins[RANKINGS[settings.rank_by][0]].mean(axis=0)
    judged = reliability(deciding, groups)
    if decided is not None:
        judged = recalibrated(judged, deciding, decided)
    rows = _assemble(pairs, split, margins, settings, judged, lam)
    annotators = supported_by(by_annotator, deciding, groups)
    return Audit(rows, pairs.source, settings, model.name, judged, lam, pairs.dropped, annotators)


def annotators_of(pairs: Pairs) -> dict[str, list[int]]:
    """{annotator: places of the pairs that they labelled}, if there are two or more."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(pairs.rows):
        name = row.get(ANNOTATOR)
        if isinstance(name, float) and (name.is_integer() or isnan(name)):  # a table's numbers beside empty cells
            name = None if isnan(name) else int(name)
        if name is None or (isinstance(name, str) and not name.strip()):
            continue
        if not isinstance(name, str | int):
            raise DataError(
                f"{ANNOTATOR} is {name!r}, but it must be one name",
                where=pairs.where(place),
                fix="write one row for each annotator, or count theirs in votes, [for, against]",
            )
        places.setdefault(str(name), []).append(place)
    return places if len(places) > 1 else {}


def supported_by(
    annotators: Mapping[str, list[int]], margins: np.ndarray, groups: Sequence[str]
) -> dict[str, tuple[int, Interval]]:
    """Of each annotator: how many pairs, and the share of their labels that margins support, the smallest first."""
    found = {
        name: (len(own), agreement_of(margins[own], [groups[place] for place in own]))
        for name, own in annotators.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[1][1].value))


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
    if settings.nuisance == "feature":
        dense = np.hstack([dense, nuisance_differences(split)])
    if not settings.words:
        return dense
    words = word_features(model, [answer for _, answer in place])
    return combine(dense, unit_scale(words[first] - words[second]))


def nuisance_differences(split: Sequence[tuple[str, str, str]]) -> np.ndarray:
    """Length, refusal and form of chosen minus rejected answers, a block of |d| about 1."""
    chosen, rejected = (nuisance_features([pair[side] for pair in split]) for side in (1, 2))
    return unit_scale(chosen - rejected)


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
    covariates: np.ndarray | None = None,
) -> tuple[dict[str, np.ndarray], float]:
    """{loss: cross-fitted margins, [repeats, pairs]}, over the same folds, and R3M's lambda.

    Covariates, [pairs, some], are fitted and left out of the margins.
    """
    progress, kept = progress or Progress(enabled=False), kept or KeptArrays()
    differences = rotated(differences)

    def fit(name: str, lam: float) -> np.ndarray:
        return cross_fitted_margins(
            differences,
            groups,
            name,
            l2=settings.l2,
            num_folds=settings.folds,
            num_repeats=settings.repeats,
            generator=torch.Generator().manual_seed(settings.seed),
            covariates=covariates,
            lam=lam,
            rho0=settings.rho0,
            tau0=settings.tau0,
            tau_max=settings.tau_max,
        )

    def made(name: str, lam: float = 0.5) -> np.ndarray:
        entry = f"margins-{name}-{lam:.6f}" if name == "r3m" else f"margins-{name}"
        found = kept.array(entry, lambda: fit(name, lam))
        task.advance()
        return found

    num_caps = len(CAPPED) if settings.lam is None else 1
    with progress.task("cross-fitting", total=2 + num_caps, unit="fits") as task:
        margins = {"bt": made("bt"), "aps": made("aps")}
        caps = caps_of(margins["bt"].mean(axis=0)) if settings.lam is None else [settings.lam]
        tried = {lam: made("r3m", lam) for lam in caps}
    fit_of = {lam: reliability(values.mean(axis=0), groups).log_likelihood for lam, values in tried.items()}
    best = max(fit_of, key=fit_of.__getitem__)
    return {name: {**margins, "r3m": tried[best]}[name] for name in MARGINS}, best


def caps_of(margins: np.ndarray) -> list[float]:
    """The values of R3M's lambda that a share of `CAPPED` of the pairs exceeds, by their weights sigma(-margin)."""
    weights = 1 / (1 + np.exp(np.clip(margins, -500, 500)))
    return [float(np.clip(np.quantile(weights, 1 - share), 1e-3, 1 - 1e-3)) for share in CAPPED]


def _assemble(
    pairs: Pairs,
    split: Sequence[tuple[str, str, str]],
    margins: dict[str, np.ndarray],
    settings: AuditSettings,
    judged: Reliability,
    lam: float,
) -> list[dict[str, Any]]:
    mean = {name: torch.from_numpy(values.mean(axis=0)) for name, values in margins.items()}
    plain, plain_found = bt(mean["bt"])
    _, robust = r3m(mean["r3m"], lam=lam)
    _, scaled = aps(mean["aps"], rho0=settings.rho0, tau0=settings.tau0, tau_max=settings.tau_max)
    deciding = RANKINGS[settings.rank_by][0]
    # every score falls with its margin; at a bound (delta = 0, tau = tau_max) only the margin tells pairs apart
    order = np.argsort(mean[deciding].numpy(), kind="stable")
    against = margins[deciding] < 0
    repeats = find_repeats(split)
    rows = []
    for rank, index in enumerate(order.tolist(), start=1):
        prompt, chosen, rejected = split[index]
        numbers = {f"margin_{name}": float(mean[name][index]) for name in MARGINS}
        row = {
            "rank": rank,
            "key": pair_key(prompt, chosen, rejected, pairs.numbers[index]),
            "row": pairs.numbers[index],
            "place": f"row {pairs.numbers[index]}",
            "wrong": float(judged.wrong[index]) if judged.can_judge else None,
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
        said = repeats.reasons(index, pairs.numbers) + _annotated(pairs.rows[index])
        row["conflict"] = index in repeats.circles
        row["reasons"] = said + _reasons(row, against[:, index], told=judged.decided > 0)
        rows.append(row)
    return rows


def _annotated(row: Pair) -> list[str]:
    """What those who labelled the pair say of its label themselves."""
    if row.get(VOTES) is not None:
        agreed, others = row[VOTES]
        return [f"{agreed} of {agreed + others} annotators gave this label"]
    if row.get(RIGHT) is not None:
        return [f"labelled with a confidence of {row[RIGHT]:.0%}"]
    return []


def _reasons(row: dict[str, Any], against: np.ndarray, *, told: bool) -> list[str]:
    """Why the reader doubts a pair's label, in words, the strongest reason first; `told`: by decided pairs."""
    votes = int(against.sum())
    if row["wrong"] is None:
        return ["not judged: this reader agrees with these labels hardly more often than chance"]
    by = "decided pairs" if told else "the noise model"
    reasons = [f"the label is wrong with probability {row['wrong']:.0%}, by {by}"]
    if votes:
        reasons.append(f"{votes} of {len(against)} cross-fitted rewards prefer the answer labelled worse")
        signs = {row[f"margin_{name}"] < 0 for name in MARGINS}
        if signs == {True}:
            reasons.append("all three losses agree")
    else:
        reasons.append("all cross-fitted rewards agree with the label")
    lengths = [len(row[side].split()) for side in ("chosen", "rejected")]
    if votes and min(lengths) > 0 and max(lengths) >= 3 * min(lengths):
        shorter = "chosen" if lengths[0] < lengths[1] else "rejected"
        reasons.append(f"the {shorter} answer is much shorter ({min(lengths)} against {max(lengths)} words)")
    return reasons


def _check(settings: AuditSettings, num_groups: int, source: str) -> None:
    if num_groups < settings.folds:
        raise DataError(
            f"has {num_groups} different questions, but {settings.folds} folds need at least as many",
            where=source,
            fix="lower the number of folds, or give more pairs",
        )
