"""Does the label audit know when it can judge, and does what it says of the noise rise as labels are exchanged?

    python benchmarks/align_audit.py --data DIR --model DIR --features KEPT --read hh        # once; core-minutes
    python benchmarks/audit_verdict.py hh qa coin planted --data DIR --model DIR --features KEPT

hh, qa: verdicts on all pairs of HH harmless-base test (Bai et al., 2022) and of QA-Feedback dev (Wu et al., 2023) as
they were labelled, with the product's own settings and nothing tuned: margins cross-fitted by Bradley-Terry, 3 x 5
folds, by words, and by hidden states of SmolLM2-135M-Instruct and words where KEPT has them. A reader is refused where
the interval of its agreement, over questions, reaches below 55 %.

coin: HH with labels that a coin gives, ten draws, by words, 1 x 5 folds.

planted: 5, 10 and 20 % of HH's labels are exchanged at random, eight draws, beside none with the same folds (1 x 5), by
hidden states. HH's own rate e is unknown, so that what the audit says of it cannot be compared; the increase can: p
exchanged labels add p (1 - 2 e) to the rate, and take p (2 A - 1) from the share A of labels that the reader supports.
Intervals: Student's t over draws, paired.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from judged_pairs import READERS, Judged, Slice, exchanged, kept_hidden

import burnish
from burnish.align.answer_features import word_features
from burnish.align.audit_settings import AuditSettings
from burnish.align.linear_reward import cross_fitted_margins
from burnish.align.reliability import reliability
from burnish.data.prompts import question_groups

DEPTHS = (2, 4)
"""Of those that are kept, the two that the product reads, but for rounding."""
COINS, DRAWS = range(2 if experiment.SMOKE else 10), range(2 if experiment.SMOKE else 8)
RATES = (0.05, 0.1, 0.2)
SETTINGS = AuditSettings()
PARTS = (*READERS, "coin", "planted")


class Audited(Slice):
    """All pairs of a set, and the audit's questions."""

    def __init__(self, name: str, arguments: argparse.Namespace, model: Any) -> None:
        judged = READERS[name](arguments.data)
        if experiment.SMOKE:
            judged = Judged(judged.texts, judged.first[:200], judged.second[:200])
        hidden = kept_hidden(name, judged, model, arguments.features)
        words = word_features(model, [answer for _, answer in judged.texts])
        super().__init__(judged, np.arange(len(judged.first)), hidden, words=words)
        answers = [(judged.texts[i], judged.texts[j]) for i, j in zip(judged.first, judged.second, strict=True)]
        self.groups = question_groups([{"prompt": a[0], "chosen": a[1], "rejected": b[1]} for a, b in answers])

    def judged_by(self, names: tuple[str, ...], flip: Any = None, *, seed: int = 0, repeats: int = 1) -> dict[str, Any]:
        """What the audit says of a reader of these features, with some labels exchanged."""
        margins = cross_fitted_margins(
            exchanged(
                self.differences(names, DEPTHS if "hidden" in names else ()),
                np.zeros(len(self), dtype=bool) if flip is None else flip,
            ),
            self.groups,
            "bt",
            l2=SETTINGS.l2,
            num_folds=SETTINGS.folds,
            num_repeats=repeats,
            generator=torch.Generator().manual_seed(seed),
        )
        found = reliability(margins.mean(axis=0), self.groups)
        rates = {"likeliest rate": found.noise.value, "at most": found.noise.high}
        said = {"agreement": vars(found.agreement), "auc": found.auc, "can judge": found.can_judge} | rates
        print(names, seed, said, flush=True)
        return said | {"pairs": len(self)}


def measured(part: str, arguments: argparse.Namespace, model: Any) -> list[dict[str, Any]]:
    """One entry a reader, or a draw."""
    if part in READERS:
        audited = Audited(part, arguments, model)
        readers = [("words",), ("hidden", "words")] if audited.dense else [("words",)]
        return [{"reader": names} | audited.judged_by(names, repeats=SETTINGS.repeats) for names in readers]
    audited = Audited("hh", arguments, model)
    if part == "coin":
        return [audited.judged_by(("words",), audited.flips(1000 + seed, 0.5), seed=seed) for seed in COINS]
    return [
        {"exchanged": share} | audited.judged_by(("hidden",), audited.flips(seed, share), seed=seed)
        for seed in DRAWS
        for share in (0.0, *RATES)
    ]


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--data", type=Path, required=True, help="directory with the two preference files")
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint whose hidden states are kept")
    parser.add_argument("--features", type=Path, help="directory with hh.npz, which `planted` needs")
    arguments = parser.read()
    torch.set_num_threads(1)
    model = burnish.load(arguments.model, dtype=torch.float32)
    for part in arguments.parts:
        started = time.process_time()
        found = measured(part, arguments, model)
        with experiment.results(arguments.out, {"parts": {}}) as everything:
            everything["parts"][part] = {"found": found, "cpu_seconds": round(time.process_time() - started)}
    content = {
        "data": {
            "hh": "HH harmless-base test (anthropics/hh-rlhf, MIT)",
            "qa": "QA-Feedback dev (allenai/FineGrainedRLHF, Apache-2.0)",
        },
        "model": model.name,
        "tuned_on": "nothing: the product's settings",
        "seeds": {"coin": list(COINS), "planted": list(DRAWS)},
    }
    experiment.record(arguments.out, __doc__, content)


NAMES = {"hh": "HH harmless", "qa": "QA-Feedback"}


def tables(results: dict[str, Any]) -> dict[str, str]:
    parts = {name: part["found"] for name, part in results["parts"].items()}
    rows = []
    for name in READERS:
        for one in parts.get(name, []):
            agreement = one["agreement"]
            shown = experiment.cell(agreement | {"mean": agreement["value"]})
            verdict = "can judge" if one["can judge"] else "cannot judge"
            data = f"{NAMES[name]} ({one['pairs']:,})"
            rows.append(
                [
                    data,
                    " and ".join(one["reader"]).replace("hidden", "hidden states"),
                    shown,
                    f"{one['auc']:.3f}",
                    verdict,
                ]
            )
    if "coin" in parts:
        coin = parts["coin"]
        values, areas = ([one[key] for one in coin] for key in ("agreement", "auc"))
        shown = f"{min(a['value'] for a in values):.3f} to {max(a['value'] for a in values):.3f} in {len(coin)} draws"
        verdict = f"cannot judge, {sum(not one['can judge'] for one in coin)} of {len(coin)}"
        data = f"{NAMES['hh']}, labels of a coin ({coin[0]['pairs']:,})"
        rows.append([data, "words", shown, f"{min(areas):.3f} to {max(areas):.3f}", verdict])
    made = {"verdict": experiment.table("data (pairs) | reader | agreement (95 %) | AUC | verdict", rows)}
    if "planted" in parts:
        made["planted"] = planted_table(parts["planted"])
    return made


def planted_table(draws: list[dict[str, Any]]) -> str:
    rows, before = [], [one for one in draws if one["exchanged"] == 0]
    clean = np.array([one["agreement"]["value"] for one in before])
    for share in RATES:
        after = [one for one in draws if one["exchanged"] == share]
        pairs = list(zip(after, before, strict=True))
        figures = [[100 * (a[key] - b[key]) for a, b in pairs] for key in ("likeliest rate", "at most")]
        figures.append(list(100 * (clean - [one["agreement"]["value"] for one in after])))
        shown = [experiment.cell(experiment.over_seeds(values), ".1f") for values in figures]
        rows.append([f"{share:.0%}", *shown, f"{100 * share * (2 * clean.mean() - 1):.1f}"])
    titles = "exchanged | rise of the likeliest rate, points (95 %) | of the largest rate | fall of the agreement"
    return experiment.table(f"{titles} | fall if the reader learned as well", rows)


if __name__ == "__main__":
    main()
