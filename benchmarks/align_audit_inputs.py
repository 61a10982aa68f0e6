"""Would other inputs than words let the label audit beat TF-IDF? Ways tried, on the tuning slice alone.

    python benchmarks/align_audit_inputs.py --data DIR --model DIR

The linear reward of the audit, fitted by Bradley-Terry, reads the words of the answers (tokens and pairs of them),
character n-grams (2 to 5, within words), lengths and punctuation, the share of an answer's words that its prompt has,
and combinations of these; the mean rank of the best and TF-IDF is shown too. Data, folds, flips (10 %), seeds, measures
and the TF-IDF model are those of align_audit.py, so is the slice: a quarter of the prompts of HH harmless-base test.
Each row shows its best penalty of three (TF-IDF: of four), chosen on this very slice, which favours all rows alike.
The reporting slice is not touched; a way that gains here would have to be measured there.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import align_audit as audit
import numpy as np
import sklearn
import torch
from ranking import auc, spread
from scipy import sparse
from scipy.stats import rankdata
from sklearn.feature_extraction.text import TfidfVectorizer

import burnish
from burnish.align.features import word_features
from burnish.align.linear_reward import cross_fitted_margins, rotated, unit_scale

RESULT = Path(__file__).parent / "results" / "align_audit_inputs.json"
L2_GRID = (3e-3, 1e-2, 3e-2)
INPUTS: dict[str, dict[str, float]] = {
    "words": {"words": 1.0},
    "characters": {"characters": 1.0},
    "words, characters": {"words": 1.0, "characters": 1.0},
    "words, lengths": {"words": 1.0, "lengths": 0.5},
    "words, characters, lengths, overlap": {"words": 1.0, "characters": 1.0, "lengths": 0.3, "overlap": 0.3},
}
MIXED, MEAN = "words, characters", "mean rank of words, characters and TF-IDF"


def blocks_of(judged: audit.Judged, model: Any) -> dict[str, Any]:
    """{name: features of every text}; none of them looks at a label."""
    answers = [answer for _, answer in judged.texts]
    lowered = [answer.strip().lower() for answer in answers]
    said = [set(prompt.lower().split()) for prompt, _ in judged.texts]
    counts = [[np.log1p(len(a.split())), np.log1p(len(a)), a.count("?"), a.count("\n"), a.count(",")] for a in answers]
    shared = [[len(set(a.split()) & p) / max(1, len(set(a.split())))] for a, p in zip(lowered, said, strict=True)]
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=3)
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    return {
        "words": word_features(model, answers),
        "characters": characters.fit_transform(lowered),
        "lengths": np.array(counts),
        "overlap": np.array(shared),
        "tfidf": tfidf.fit_transform(lowered),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with hh_harmless_test.jsonl.gz")
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint, for its tokenizer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    model = burnish.load(arguments.model, dtype=torch.float32)
    judged = audit.read_hh(arguments.data)
    blocks = blocks_of(judged, model)
    tuned = np.array([int(audit.digest(judged.texts[i][0]), 16) % 4 == 0 for i in judged.first])
    part = audit.Slice(judged, np.flatnonzero(tuned), None, blocks["words"], blocks["tfidf"])
    first, second = judged.first[tuned], judged.second[tuned]
    gaps = {name: sparse.csr_matrix(unit_scale(block[first] - block[second])) for name, block in blocks.items()}
    flips = [part.flips(seed, 0.1) for seed in audit.TUNING_SEEDS]

    def linear(differences: np.ndarray, l2: float) -> list[np.ndarray]:
        scores = []
        for seed, flip in zip(audit.TUNING_SEEDS, flips, strict=True):
            margins = cross_fitted_margins(
                audit.signed(differences, flip),
                list(part.group),
                "bt",
                l2=l2,
                num_folds=audit.FOLDS,
                num_repeats=1,
                generator=torch.Generator().manual_seed(seed),
            )
            scores.append(-margins.mean(axis=0))
        return scores

    def mean_auc(scores: list[np.ndarray]) -> float:
        return float(np.mean([auc(score, flip) for score, flip in zip(scores, flips, strict=True)]))

    tried: list[dict[str, Any]] = []
    scores: dict[str, list[np.ndarray]] = {}
    options: dict[str, list[tuple[float, list[np.ndarray]]]] = {audit.PEER: []}
    for c in audit.C_GRID:
        seeds = zip(audit.TUNING_SEEDS, flips, strict=True)
        options[audit.PEER].append((c, [audit.peer(part, flip, seed, 1, c=c) for seed, flip in seeds]))
    for name, weights in INPUTS.items():
        differences = rotated(sparse.hstack([weight * gaps[block] for block, weight in weights.items()]).tocsr())
        options[name] = [(l2, linear(differences, l2)) for l2 in L2_GRID]
    for name, found in options.items():
        tried += [{"name": name, "penalty": penalty, "auc": mean_auc(values)} for penalty, values in found]
        scores[name] = max(found, key=lambda one: mean_auc(one[1]))[1]
    both = zip(scores[MIXED], scores[audit.PEER], strict=True)
    scores[MEAN] = [rankdata(one) + rankdata(other) for one, other in both]

    draws = audit.bootstrap(part.group, flips, scores)
    rows: dict[str, Any] = {}
    for name, values in scores.items():
        rows[name] = {}
        for measure, function in (("auc", auc), ("lift", audit.lift)):
            own, peer = (
                np.mean([function(score, flip) for score, flip in zip(of, flips, strict=True)])
                for of in (values, scores[audit.PEER])
            )
            gap = np.array(draws[name][measure]) - np.array(draws[audit.PEER][measure])
            rows[name][measure] = spread(own, draws[name][measure]) | {"against TF-IDF": spread(own - peer, gap)}
    content = {
        "question": __doc__,
        "data": "HH harmless-base test (anthropics/hh-rlhf, MIT)",
        "pairs": len(part),
        "slices": {"tuning": part.hashes, "reporting": []},
        "seeds": list(audit.TUNING_SEEDS),
        "tried": tried,
        "rows": rows,
        "machine": f"{platform.processor() or platform.machine()}, one thread, shared with other work",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tables(results: dict[str, Any]) -> dict[str, str]:
    lines = [
        "| inputs | AUC | AUC - TF-IDF | lift in the top 5 % | lift - TF-IDF |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in results["rows"].items():
        cells = [name]
        for measure, digits in (("auc", 3), ("lift", 2)):
            value, gap = row[measure], row[measure]["against TF-IDF"]
            cells.append(f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})")
            own = f"{gap['mean']:+.{digits}f} ({gap['low']:+.{digits}f} to {gap['high']:+.{digits}f})"
            cells.append("" if name == audit.PEER else own)
        lines.append("| " + " | ".join(cells) + " |")
    return {"inputs": "\n".join(lines)}


if __name__ == "__main__":
    main()
