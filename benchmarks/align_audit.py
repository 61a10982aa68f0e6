"""Does the label audit find wrong labels on real text pairs, and does it find them better than words alone?

    python benchmarks/align_audit.py --data DIR --model DIR --only hh
    python benchmarks/align_audit.py --data DIR --model DIR --only qa --features DIR

Two sets of human judgements: HH harmless-base test (Bai et al., 2022; assistants' answers) and QA-Feedback dev (Wu et
al., 2023; factual answers). 10 % of the labels (and, in a second series, 20 %) are flipped at random; the audit ranks
all pairs by cross-fitted margins. Measures: share of flipped labels among the 5 % most suspicious pairs, over the base
rate (lift); AUC of the score against the flips. Compared are the three losses, on words and, where --features has them,
on hidden states and words, with TF-IDF and logistic regression (scikit-learn), all cross-fitted over the same folds.
The data's own label noise counts against all.

A quarter of the prompts (by hash) is the tuning slice: l2, lambda, depths and the C of the TF-IDF model are chosen
there by AUC at 10 %, with seeds 100-102. The rest is reported, seeds 0-4. Intervals: bootstrap over prompts and seeds
together, 500 draws, paired for differences. A data set's results replace its earlier ones in the JSON.

--features: a directory with hh.npz and qa.npz, hidden states by `read_features`; they take core-minutes to make, so
they are made by `--read hh --pairs 1000` or `--read qa`, and kept. HH with hidden states uses the pairs that have them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from judged_pairs import (
    DEPTHS,
    MAX_LENGTH,
    READERS,
    TOP,
    Judged,
    Slice,
    exchanged,
    keep_hidden,
    kept_hidden,
    lift,
    slices,
)
from ranking import auc, spread
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import burnish
from burnish.align.answer_features import word_features
from burnish.align.linear_reward import cross_fitted_margins, folds_of_groups

FOLDS, REPEATS = 5, 2
TUNING_SEEDS, SEEDS = range(100, 101 if experiment.SMOKE else 103), range(1 if experiment.SMOKE else 5)
L2_GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
LAMBDAS = (0.2, 0.35, 0.5)
C_GRID = (0.1, 0.3, 1.0, 3.0)
DEPTH_GRID = ((2,), (4,), (5,), (2, 4))
PEER = "TF-IDF, logistic regression"


def ours(
    part: Slice,
    flip: np.ndarray,
    seed: int,
    repeats: int,
    *,
    loss: str,
    depths: Any,
    words: bool,
    l2: float,
    lam: float = 0.3,
) -> np.ndarray:
    """Suspicion of every pair: minus the cross-fitted margin."""
    names = ("hidden",) * bool(depths) + ("words",) * words
    margins = cross_fitted_margins(
        exchanged(part.differences(names, tuple(depths)), flip),
        list(part.question),
        loss,
        l2=l2,
        num_folds=FOLDS,
        num_repeats=repeats,
        generator=torch.Generator().manual_seed(seed),
        lam=lam,
        rho0=0.1,
        tau0=0.1,
        tau_max=5.0,
    )
    return -margins.mean(axis=0)


def peer(part: Slice, flip: np.ndarray, seed: int, repeats: int, *, c: float) -> np.ndarray:
    """TF-IDF and logistic regression, cross-fitted over the same folds."""
    differences, generator = exchanged(part.raw["tfidf"], flip), torch.Generator().manual_seed(seed)
    score = np.zeros(len(part))
    for _ in range(repeats):
        fold = folds_of_groups(list(part.question), FOLDS, generator)
        for number in range(FOLDS):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            both = sparse.vstack([differences[inside], -differences[inside]])
            label = np.r_[np.ones(len(inside)), np.zeros(len(inside))]
            model = LogisticRegression(C=c, fit_intercept=False, max_iter=300).fit(both, label)
            score[outside] -= differences[outside] @ model.coef_.ravel()
    return score / repeats


def tune(part: Slice) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings by mean AUC on the tuning slice, where lift would count a few dozen pairs; every try is kept."""
    tried: list[dict[str, Any]] = []

    def best(name: str, method: Any, options: list[dict[str, Any]]) -> dict[str, Any]:
        def score(settings: dict[str, Any]) -> float:
            rows = []
            for seed in TUNING_SEEDS:
                flip = part.flips(seed, 0.1)
                values = method(part, flip, seed, 1, **settings)
                rows.append((lift(values, flip), auc(values, flip)))
            mean = np.mean(rows, axis=0)
            tried.append({"name": name, "settings": settings, "lift": float(mean[0]), "auc": float(mean[1])})
            return float(mean[1])

        return experiment.search(options, score, largest=True)[0]

    chosen = {PEER: best(PEER, peer, [{"c": c} for c in C_GRID])}
    inputs: dict[str, dict[str, Any]] = {"words": {"depths": (), "words": True}}
    if part.dense:
        name = "hidden states, BT"
        grid = [{"loss": "bt", "depths": d, "words": False, "l2": l2} for d in DEPTH_GRID for l2 in L2_GRID]
        chosen[name] = best(name, ours, grid)
        inputs["hidden states and words"] = {"depths": chosen[name]["depths"], "words": True}
    for label, features in inputs.items():
        for loss in ("bt", "aps", "r3m"):
            lams = LAMBDAS if loss == "r3m" else (0.3,)
            grid = [{"loss": loss, "l2": l2, "lam": lam} | features for l2 in L2_GRID for lam in lams]
            chosen[f"{label}, {loss.upper()}"] = best(f"{label}, {loss.upper()}", ours, grid)
    return chosen, tried


def report(part: Slice, chosen: dict[str, Any], share: float) -> dict[str, Any]:
    """Every method on the same flips and folds, and bootstrap intervals over seeds and questions."""
    scores: dict[str, list[np.ndarray]] = {name: [] for name in chosen}
    flips = []
    for seed in SEEDS:
        flip = part.flips(seed, share)
        flips.append(flip)
        for name, settings in chosen.items():
            method = peer if "c" in settings else ours
            scores[name].append(method(part, flip, seed, REPEATS, **settings))
    draws = bootstrap(part.question, flips, scores)
    rows = {}
    for name in chosen:
        rows[name] = {}
        for measure, function in (("lift", lift), ("auc", auc)):
            per_seed = [function(value, flip) for value, flip in zip(scores[name], flips, strict=True)]
            rows[name][measure] = spread(float(np.mean(per_seed)), draws[name][measure]) | {"per_seed": per_seed}
            for other, key in ((PEER, "against TF-IDF"), ("words, BT", "against BT on words")):
                values = [function(value, flip) for value, flip in zip(scores[other], flips, strict=True)]
                gap = np.array(draws[name][measure]) - np.array(draws[other][measure])
                rows[name][measure][key] = spread(float(np.mean(per_seed) - np.mean(values)), gap)
    return rows


def bootstrap(group: np.ndarray, flips: list[np.ndarray], scores: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """{method: {measure: 500 values}}; one draw resamples the questions, and the seeds with repetition."""
    generator = np.random.default_rng(0)
    names = np.unique(group)
    members = {name: np.flatnonzero(group == name) for name in names}
    draws: dict[str, Any] = {name: {"lift": [], "auc": []} for name in scores}
    for _ in range(20 if experiment.SMOKE else 500):
        taken = np.concatenate([members[name] for name in generator.choice(names, len(names))])
        seeds = generator.integers(len(flips), size=len(flips))
        for name, values in scores.items():
            pairs = [(values[seed][taken], flips[seed][taken]) for seed in seeds]
            draws[name]["lift"].append(np.mean([lift(score, flip) for score, flip in pairs]))
            draws[name]["auc"].append(np.mean([auc(score, flip) for score, flip in pairs]))
    return draws


def run(name: str, judged: Judged, hidden: np.ndarray | None, words: Any, tfidf: Any) -> dict[str, Any]:
    tuning, reporting = slices(judged, hidden, words=words, tfidf=tfidf)
    chosen, tried = tune(tuning)
    print(name, len(tuning), len(reporting), flush=True)
    return {
        "pairs": {"tuning": len(tuning), "reporting": len(reporting)},
        "hashes": {"tuning": tuning.hashes, "reporting": reporting.hashes},
        "tried": tried,
        "chosen": chosen,
        "flipped 10 %": report(reporting, chosen, 0.1),
        "flipped 20 %": report(reporting, chosen, 0.2),
    }


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory with the two preference files")
    parser.add_argument("--model", type=Path, required=True, help="a causal language model's checkpoint")
    parser.add_argument("--features", type=Path, help="directory of kept hidden states")
    parser.add_argument("--only", choices=list(READERS), help="this data set only")
    parser.add_argument("--read", choices=list(READERS), help="make the hidden states of one data set, and stop")
    parser.add_argument("--pairs", type=int, help="with --read: only so many pairs")
    arguments = parser.read()
    started = time.process_time()
    reading = torch.bfloat16 if arguments.read else torch.float32
    model = burnish.load(arguments.model, dtype=reading)
    if arguments.read:
        judged = READERS[arguments.read](arguments.data)
        keep_hidden(arguments.read, judged, model, arguments.pairs, arguments.features)
        return
    found: dict[str, Any] = {}
    for name, reader in READERS.items():
        if arguments.only not in (None, name):
            continue
        judged = reader(arguments.data)
        answers = [answer for _, answer in judged.texts]
        words = word_features(model, answers)
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        tfidf = vectorizer.fit_transform([answer.strip().lower() for answer in answers])
        hidden = kept_hidden(name, judged, model, arguments.features)
        if name == "hh":
            found[name] = run(name, judged, None, words, tfidf)
        if hidden is not None:
            found[f"{name}, hidden states"] = run(name, judged, hidden, words, tfidf)
        elif name != "hh":
            found[name] = run(name, judged, None, words, tfidf)
    with experiment.results(arguments.out, {"results": {}}) as earlier:
        results = earlier["results"] | found
    slices = {
        side: sorted({value for part in results.values() for value in part["hashes"][side]})
        for side in ("tuning", "reporting")
    }
    content = {
        "data": {
            "hh": "HH harmless-base test (anthropics/hh-rlhf, MIT)",
            "qa": "QA-Feedback dev (allenai/FineGrainedRLHF, Apache-2.0)",
        },
        "model": model.name,
        "slices": slices,
        "seeds": {"tuning": list(TUNING_SEEDS), "reporting": list(SEEDS)},
        "settings": {"folds": FOLDS, "repeats": REPEATS, "top": TOP, "max_length": MAX_LENGTH, "depths": DEPTHS},
        "results": results,
        "cpu_seconds": earlier.get("cpu_seconds", 0.0) + round(time.process_time() - started, 1),
    }
    note = "one thread, shared with other work"
    experiment.record(arguments.out, __doc__, content, note=note, libraries=["scikit-learn"])


TITLES = {"hh": "HH harmless", "hh, hidden states": "HH harmless, first pairs", "qa": "QA-Feedback"}
TITLES |= {"qa, hidden states": "QA-Feedback"}


def tables(results: dict[str, Any]) -> dict[str, str]:
    made = {}
    for name, key in (("ten", "flipped 10 %"), ("twenty", "flipped 20 %")):
        rows = []
        for data, part in results["results"].items():
            for method, row in part[key].items():
                cells = [f"{TITLES[data]} ({part['pairs']['reporting']:,})", method]
                for measure, digits in (("lift", 2), ("auc", 3)):
                    gap = row[measure]["against TF-IDF"]
                    cells.append(experiment.cell(row[measure], f".{digits}f"))
                    cells.append("" if method == PEER else experiment.cell(gap, f"+.{digits}f"))
                rows.append(cells)
        header = (
            "data (pairs) | ranking | lift in the top 5 % (95 %, percentile bootstrap) | lift - TF-IDF | AUC "
            "| AUC - TF-IDF"
        )
        made[name] = experiment.table(header, rows)
    return made


if __name__ == "__main__":
    main()
