"""What the benchmarks of the label audit share: answers that people judged, and their features as differences.

Two sets of human judgements: HH harmless-base test (Bai et al., 2022; assistants' answers) and QA-Feedback dev (Wu et
al., 2023; factual answers). A quarter of the prompts, by hash, is the tuning slice; the rest is reported.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from scipy import sparse

from burnish.align.answer_features import hidden_features
from burnish.align.audit import combine
from burnish.align.kept_arrays import KeptArrays
from burnish.align.linear_reward import rotated, unit_scale
from burnish.align.maths.noise import uniform
from burnish.core.progress import Progress
from burnish.data.preferences import read_pairs

DEPTHS = (8 / 30, 12 / 30, 16 / 30, 20 / 30, 24 / 30, 1.0)
MAX_LENGTH = {"hh": 192, "qa": 160}
TOP = 0.05


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


# -- hidden states: core-minutes, so they are made once and kept -------------------------------------------------------


def keep_hidden(name: str, judged: Judged, model: Any, pairs: int | None, directory: Path) -> None:
    """Hidden states of the first `pairs` pairs' answers at DEPTHS, [answers, depths, hidden]; may be interrupted."""
    texts = judged.texts if pairs is None else judged.texts[: 2 * pairs]
    key = {"data": name, "pairs": pairs, "model": model.identity, "depths": DEPTHS, "max_length": MAX_LENGTH[name]}
    kept = KeptArrays(directory / f"{name}.work", key)
    made = hidden_features(model, texts, depths=DEPTHS, max_length=MAX_LENGTH[name], progress=Progress(), kept=kept)
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / f"{name}.npz", features=made.reshape(len(texts), len(DEPTHS), -1))


def kept_hidden(name: str, judged: Judged, model: Any, directory: Path | None) -> np.ndarray | None:
    """What `keep_hidden` has left, or None; a few answers are read again, and must come out as they were kept."""
    file = None if directory is None else directory / f"{name}.npz"
    if file is None or not file.is_file():
        return None
    known = np.load(file, allow_pickle=False)["features"]
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
    return known


# -- pairs and their differences ---------------------------------------------------------------------------------------


class Slice:
    """Some pairs and their features as differences, better minus worse, in blocks of one size.

    Args:
        judged: all pairs.
        keep: places of those of the slice.
        hidden: hidden states of the first answers, [answers, depths, hidden].
        **features: other blocks by name, [answers, features]: "words" (sparse) and "form", and any that is asked for as
            it is (`raw`).
    """

    def __init__(self, judged: Judged, keep: np.ndarray, hidden: np.ndarray | None, **features: Any) -> None:
        first, second = judged.first[keep], judged.second[keep]
        self.prompts = [judged.texts[i][0] for i in first]
        self.hashes = sorted({digest(prompt) for prompt in self.prompts})
        self.raw = {name: answers[first] - answers[second] for name, answers in features.items()}
        self.dense: list[np.ndarray] = []
        if hidden is not None:
            gaps = (hidden[first] - hidden[second]).astype(np.float64)
            self.dense = [unit_scale(gaps[:, depth]) for depth in range(len(DEPTHS))]
        self.made: dict[Any, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def question(self) -> np.ndarray:
        """A number per pair: that of its prompt in the order of the alphabet."""
        number = {prompt: index for index, prompt in enumerate(sorted(set(self.prompts)))}
        return np.array([number[prompt] for prompt in self.prompts])

    def flips(self, seed: int, share: float) -> np.ndarray:
        return uniform(len(self), share, torch.Generator().manual_seed(seed)).numpy()

    def block(self, name: str, depths: tuple[int, ...] = ()) -> Any:
        """ "hidden", "words", "form", or of the form its "length" alone."""
        if name == "hidden":
            return unit_scale(np.hstack([self.dense[depth] for depth in depths]))
        return unit_scale(self.raw["form"][:, :1] if name == "length" else self.raw[name])

    def differences(self, names: tuple[str, ...], depths: tuple[int, ...]) -> np.ndarray:
        """Blocks side by side, in as few coordinates as they need."""
        if (names, depths) not in self.made:
            dense = [self.block(name, depths) for name in names if name != "words"]
            joined = np.hstack([np.zeros((len(self), 0)), *dense])
            self.made[names, depths] = rotated(combine(joined, self.block("words")) if "words" in names else joined)
        return self.made[names, depths]


def slices(judged: Judged, hidden: np.ndarray | None, **features: Any) -> tuple[Slice, Slice]:
    """Tuning and reporting slice, of the pairs that have hidden states if any are given."""
    usable = np.ones(len(judged.first), dtype=bool)
    if hidden is not None:
        usable = (judged.first < len(hidden)) & (judged.second < len(hidden))
    tuned = np.array([int(digest(judged.texts[i][0]), 16) % 4 == 0 for i in judged.first])
    tuning, reporting = (Slice(judged, np.flatnonzero(usable & side), hidden, **features) for side in (tuned, ~tuned))
    return tuning, reporting


def digest(prompt: str) -> str:
    return experiment.digest(prompt)[:16]


def exchanged(differences: Any, flip: np.ndarray) -> Any:
    """The differences with those of flipped labels negated."""
    sign = np.where(flip, -1.0, 1.0)[:, None]
    return differences.multiply(sign).tocsr() if sparse.issparse(differences) else differences * sign


def lift(score: np.ndarray, flip: np.ndarray) -> float:
    """The share of flipped labels among the most suspicious pairs, over their share in all."""
    top = np.argsort(-score, kind="stable")[: max(1, round(TOP * len(score)))]
    return float(flip[top].mean() / flip.mean())
