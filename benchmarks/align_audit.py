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

import gzip
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from ranking import auc, spread
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import burnish
from burnish.align.answer_features import hidden_features, word_features
from burnish.align.audit import combine
from burnish.align.kept_arrays import KeptArrays
from burnish.align.linear_reward import cross_fitted_margins, folds_of_groups, rotated, unit_scale
from burnish.align.maths.noise import uniform
from burnish.core.progress import Progress
from burnish.data.preferences import read_pairs

DEPTHS = (8 / 30, 12 / 30, 16 / 30, 20 / 30, 24 / 30, 1.0)
MAX_LENGTH = {"hh": 192, "qa": 160}
TOP = 0.05
FOLDS, REPEATS = 5, 2
TUNING_SEEDS, SEEDS = range(100, 101 if experiment.SMOKE else 103), range(1 if experiment.SMOKE else 5)
L2_GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
LAMBDAS = (0.2, 0.35, 0.5)
C_GRID = (0.1, 0.3, 1.0, 3.0)
DEPTH_GRID = ((2,), (4,), (5,), (2, 4))
PEER = "TF-IDF, logistic regression"


@dataclass
class Judged:
    """Texts (prompt, answer), and pairs as indices into them with the better answer first."""

    texts: list[tuple[str, str]]
    first: np.ndarray
    second: np.ndarray


def read_hh(directory: Path) -> Judged:
    pairs = read_pairs(directory / "hh_harmless_test.jsonl.gz", on_bad_pair="drop")
    texts = [(row["prompt"], row[side]) for row in pairs.rows for side in ("chosen", "rejected")]
    places = np.arange(len(pairs))
    return Judged(texts, 2 * places, 2 * places + 1)


def read_qa(directory: Path) -> Judged:
    order = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))  # of the six judgements in the file
    texts, first, second = [], [], []
    with gzip.open(directory / "qa_feedback_dev.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            base = len(texts)
            for (i, j), judged in zip(order, row["preference"], strict=True):
                if judged and row["predictions"][i].strip() != row["predictions"][j].strip():
                    better, worse = (i, j) if judged == 1 else (j, i)
                    first.append(base + better)
                    second.append(base + worse)
            texts += [(row["question"], answer) for answer in row["predictions"]]
    return Judged(texts, np.array(first), np.array(second))


READERS = {"hh": read_hh, "qa": read_qa}


def read_features(name: str, judged: Judged, model: Any, pairs: int | None, target: Path) -> None:
    """Hidden states of the first `pairs` pairs' answers at DEPTHS, [answers, depths, hidden]; may be interrupted."""
    texts = judged.texts if pairs is None else judged.texts[: 2 * pairs]
    key = {"data": name, "pairs": pairs, "model": model.identity, "depths": DEPTHS, "max_length": MAX_LENGTH[name]}
    kept = KeptArrays(target.parent / f"{name}.work", key)
    made = hidden_features(model, texts, depths=DEPTHS, max_length=MAX_LENGTH[name], progress=Progress(), kept=kept)
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, features=made.reshape(len(texts), len(DEPTHS), -1))


def check_features(name: str, judged: Judged, model: Any, known: np.ndarray) -> None:
    """Reads a few answers again; kept features must be what this model makes of these texts."""
    some = list(range(0, len(known), max(1, len(known) // 6)))
    again = hidden_features(
        model,
        [judged.texts[i] for i in some],
        depths=DEPTHS,
        max_length=MAX_LENGTH[name],
        progress=Progress(enabled=False),
    )
    if np.abs(known[some].reshape(len(some), -1) - again).max() > 1e-2 * np.abs(again).max():
        raise SystemExit(f"the kept features of {name} were made by another model or another way of reading")


class Slice:
    """Some pairs and their features as differences, better minus worse."""

    def __init__(self, judged: Judged, keep: np.ndarray, hidden: np.ndarray | None, words: Any, tfidf: Any) -> None:
        first, second = judged.first[keep], judged.second[keep]
        prompts = [judged.texts[i][0] for i in first]
        names = {prompt: index for index, prompt in enumerate(sorted(set(prompts)))}
        self.group = np.array([names[prompt] for prompt in prompts])
        self.hashes = sorted({digest(prompt) for prompt in names})
        self.words = unit_scale(words[first] - words[second])
        self.tfidf = (tfidf[first] - tfidf[second]).tocsr()
        self.dense: list[np.ndarray] = []
        if hidden is not None:
            gaps = (hidden[first] - hidden[second]).astype(np.float64)
            self.dense = [unit_scale(gaps[:, depth]) for depth in range(len(DEPTHS))]
        self.made: dict[Any, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.group)

    def differences(self, depths: tuple[int, ...], words: bool) -> np.ndarray:
        if (depths, words) not in self.made:
            dense = unit_scale(np.hstack([self.dense[d] for d in depths])) if depths else np.zeros((len(self), 0))
            self.made[depths, words] = rotated(combine(dense, self.words) if words else dense)
        return self.made[depths, words]

    def flips(self, seed: int, share: float) -> np.ndarray:
        return uniform(len(self), share, torch.Generator().manual_seed(seed)).numpy()


def digest(prompt: str) -> str:
    return experiment.digest(prompt)[:16]


def signed(differences: Any, flip: np.ndarray) -> Any:
    sign = np.where(flip, -1.0, 1.0)[:, None]
    return differences.multiply(sign).tocsr() if sparse.issparse(differences) else differences * sign


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
    margins = cross_fitted_margins(
        signed(part.differences(tuple(depths), words), flip),
        list(part.group),
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
    differences, generator = signed(part.tfidf, flip), torch.Generator().manual_seed(seed)
    score = np.zeros(len(part))
    for _ in range(repeats):
        fold = folds_of_groups(list(part.group), FOLDS, generator)
        for number in range(FOLDS):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            both = sparse.vstack([differences[inside], -differences[inside]])
            label = np.r_[np.ones(len(inside)), np.zeros(len(inside))]
            model = LogisticRegression(C=c, fit_intercept=False, max_iter=300).fit(both, label)
            score[outside] -= differences[outside] @ model.coef_.ravel()
    return score / repeats


def lift(score: np.ndarray, flip: np.ndarray) -> float:
    top = np.argsort(-score, kind="stable")[: max(1, round(TOP * len(score)))]
    return float(flip[top].mean() / flip.mean())


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
    draws = bootstrap(part.group, flips, scores)
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
    usable = np.ones(len(judged.first), dtype=bool)
    if hidden is not None:
        usable = (judged.first < len(hidden)) & (judged.second < len(hidden))
    tuned = np.array([int(digest(judged.texts[i][0]), 16) % 4 == 0 for i in judged.first])
    tuning, reporting = (Slice(judged, np.flatnonzero(usable & side), hidden, words, tfidf) for side in (tuned, ~tuned))
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
        target = arguments.features / f"{arguments.read}.npz"
        read_features(arguments.read, READERS[arguments.read](arguments.data), model, arguments.pairs, target)
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
        kept = arguments.features / f"{name}.npz" if arguments.features else None
        if name == "hh":
            found[name] = run(name, judged, None, words, tfidf)
        if kept is not None and kept.is_file():
            hidden = np.load(kept, allow_pickle=False)["features"]
            check_features(name, judged, model, hidden)
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
