"""Do a model's hidden states help the label audit to find wrong labels, beside words and the length of an answer?

    python benchmarks/align_audit.py --data DIR --model DIR --features KEPT --read hh        # once; core-minutes
    python benchmarks/audit_features.py --data DIR --model DIR --features KEPT

HH harmless-base test (Bai et al., 2022), 10 % of the labels flipped at random, seeds that no earlier measurement used.
Every side is a linear reward, cross-fitted over the same folds (Bradley-Terry, 2 x 5 folds), and ranks pairs by minus
its margin: the difference of two sides is one of features. Features: TF-IDF of words; hidden states of
SmolLM2-135M-Instruct (read in bfloat16) at one or two depths; what people may prefer by whatever is said (length,
refusal, form), as features like the others ("and form") or as covariates that are fitted and left out of the margin
("form removed"). "Stacked" adds the margins of two sides with weights by logistic regression on the margins of the
other folds. "R3M" fits the last set with a cap that cross-fitted likelihood chose among four, as the audit does.

A quarter of the prompts (by hash) is the tuning slice: depths and, for every side alike, l2 of five are chosen there by
AUC, with three seeds. The rest is reported. Measures: share of flipped labels among the 5 % most suspicious pairs over
the base rate (lift), and AUC. Intervals: Student's t over ten seeds, paired against words and length. On HH itself the
labels' own noise is unknown and counts against all sides.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from judged_pairs import Slice, exchanged, kept_hidden, lift, read_hh, slices
from ranking import auc
from scipy.optimize import minimize
from scipy.special import expit

import burnish
from burnish.align.answer_features import nuisance_features, word_features
from burnish.align.audit import NEAR_FREE, caps_of
from burnish.align.linear_reward import cross_fitted_margins, folds_of_groups
from burnish.align.reliability import reliability

SHARE, FOLDS, REPEATS = 0.1, 5, 2
TUNING_SEEDS, SEEDS = range(100, 101 if experiment.SMOKE else 103), range(10, 11 if experiment.SMOKE else 20)
L2_GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
DEPTH_GRID = ((2,), (3,), (4,), (5,), (2, 4))
BASELINE = "words and length"
REMOVED = "-form"
"""Form as covariates that are fitted and left out of the margin."""
FEATURES: dict[str, tuple[str, ...]] = {
    "words": ("words",),
    BASELINE: ("words", "length"),
    "words and form": ("words", "form"),
    "words, form removed": ("words", REMOVED),
    "hidden states": ("hidden",),
    "hidden states and words": ("hidden", "words"),
    "hidden states, words and form": ("hidden", "words", "form"),
    "hidden states and words, form removed": ("hidden", "words", REMOVED),
}
STACKED = "stacked: hidden states beside words and form"
CAPPED = "hidden states, words and form, R3M"
SIDES = (*FEATURES, STACKED, CAPPED)


def fitted(part: Slice, flip: np.ndarray, seed: int, settings: dict[str, Any], **loss: Any) -> np.ndarray:
    """Cross-fitted margins, [repeats, pairs]."""
    features = settings["features"]
    names = tuple(name for name in features if name != REMOVED)
    covariates = exchanged(NEAR_FREE * part.block("form"), flip) if REMOVED in features else None
    return cross_fitted_margins(
        exchanged(part.differences(names, tuple(settings["depths"])), flip),
        part.prompts,
        loss.pop("name", "bt"),
        l2=settings["l2"],
        num_folds=FOLDS,
        num_repeats=settings.get("repeats", REPEATS),
        generator=torch.Generator().manual_seed(seed),
        covariates=covariates,
        **loss,
    )


def stacked(part: Slice, seed: int, sides: list[np.ndarray]) -> np.ndarray:
    """Margins of several sides added up, with weights that the other folds' margins make likeliest."""
    made = np.zeros(len(part))
    generator = torch.Generator().manual_seed(seed)
    for values in zip(*sides, strict=True):
        columns = np.stack([value / np.sqrt(np.mean(value**2)) for value in values], axis=1)
        fold = folds_of_groups(part.prompts, FOLDS, generator)
        for number in range(FOLDS):
            inside, outside = columns[fold != number], fold == number

            def loss(weights: np.ndarray, inside: np.ndarray = inside) -> tuple[float, np.ndarray]:
                margin = inside @ weights
                return float(np.logaddexp(0, -margin).mean()), -(expit(-margin) @ inside) / len(inside)

            made[outside] += columns[outside] @ minimize(loss, np.zeros(len(sides)), jac=True).x
    return made / len(sides[0])


def capped(part: Slice, flip: np.ndarray, seed: int, settings: dict[str, Any], plain: np.ndarray) -> np.ndarray:
    """R3M with the cap that makes the cross-fitted labels likeliest."""
    tried = [fitted(part, flip, seed, settings, name="r3m", lam=lam).mean(axis=0) for lam in caps_of(plain)]
    return max(tried, key=lambda margins: reliability(margins, part.prompts).log_likelihood)


def tune(part: Slice) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    tried: list[dict[str, Any]] = []
    flips = {seed: part.flips(seed, SHARE) for seed in TUNING_SEEDS}

    def best(name: str, depths: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
        options = [{"features": FEATURES[name], "depths": d, "l2": l2, "repeats": 1} for d in depths for l2 in L2_GRID]

        def score(settings: dict[str, Any]) -> float:
            found = [auc(-fitted(part, flip, seed, settings).mean(axis=0), flip) for seed, flip in flips.items()]
            tried.append({"name": name, "settings": settings, "auc": float(np.mean(found))})
            return float(np.mean(found))

        return experiment.search(options, score, largest=True)[0] | {"repeats": REPEATS}

    if not part.dense:
        return {name: best(name, ((),)) for name, blocks in FEATURES.items() if "hidden" not in blocks}, tried
    chosen = {"hidden states": best("hidden states", DEPTH_GRID)}
    depths = chosen["hidden states"]["depths"]
    chosen |= {name: best(name, (depths,)) for name in FEATURES if name not in chosen}
    return chosen, tried


def report(part: Slice, chosen: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """{side: {measure: one value a seed}}."""
    sides = SIDES if part.dense else tuple(chosen)
    found: dict[str, dict[str, list[float]]] = {side: {"lift": [], "auc": []} for side in sides}
    for seed in SEEDS:
        flip = part.flips(seed, SHARE)
        each = {name: fitted(part, flip, seed, settings) for name, settings in chosen.items()}
        margins = {name: values.mean(axis=0) for name, values in each.items()}
        if part.dense:
            margins[STACKED] = stacked(part, seed, [each["hidden states"], each["words and form"]])
            whole = "hidden states, words and form"
            margins[CAPPED] = capped(part, flip, seed, chosen[whole], margins[whole])
        for side in sides:
            found[side]["lift"].append(lift(-margins[side], flip))
            found[side]["auc"].append(auc(-margins[side], flip))
        print(seed, {side: round(found[side]["lift"][-1], 2) for side in sides}, flush=True)
    return found


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory with hh_harmless_test.jsonl.gz")
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint whose hidden states are kept")
    parser.add_argument("--features", type=Path, help="directory with hh.npz; without it, what words and form say")
    arguments = parser.read()
    torch.set_num_threads(1)
    started = time.process_time()
    model = burnish.load(arguments.model, dtype=torch.float32)
    judged = read_hh(arguments.data)
    hidden = kept_hidden("hh", judged, model, arguments.features)
    answers = [answer for _, answer in judged.texts]
    words, form = word_features(model, answers), nuisance_features(answers)
    tuning, reporting = slices(judged, hidden, words=words, form=form)
    chosen, tried = tune(tuning)
    print(len(tuning), len(reporting), chosen, flush=True)
    content = {
        "data": "HH harmless-base test (anthropics/hh-rlhf, MIT)",
        "model": model.name,
        "slices": {"tuning": tuning.hashes, "reporting": reporting.hashes},
        "pairs": {"tuning": len(tuning), "reporting": len(reporting)},
        "seeds": {"tuning": list(TUNING_SEEDS), "reporting": list(SEEDS)},
        "tried": tried,
        "chosen": chosen,
        "found": report(reporting, chosen),
        "cpu_seconds": round(time.process_time() - started),
    }
    experiment.record(arguments.out, __doc__, content)


def tables(results: dict[str, Any]) -> dict[str, str]:
    rows = []
    for side, found in results["found"].items():
        cells: list[str] = [side]
        for measure, digits in (("lift", 2), ("auc", 3)):
            values, base = (np.array(one[measure]) for one in (found, results["found"][BASELINE]))
            cells.append(experiment.cell(experiment.over_seeds(values), f".{digits}f"))
            gap = experiment.over_seeds(values - base)
            cells.append("" if side == BASELINE else experiment.cell(gap, f"+.{digits}f"))
        rows.append(cells)
    against = "against words and length"
    return {"ten": experiment.table(f"reader | lift in the top 5 % (95 %) | {against} | AUC (95 %) | {against}", rows)}


if __name__ == "__main__":
    main()
