"""Does a scale per pair, or a cap on its pull, make a better policy when preference labels are wrong?

    python benchmarks/align_policy.py --data DIR --work DIR --minutes 10   # again, or twice at once, until all is done

Everything can be known here. A Llama of 1.3 million parameters is trained from nothing by `burnish train` on four
fifths of the movie reviews of Pang and Lee (2004). It continues openings of sentences from the other reviews, two
answers for each, and a program that is no model says which is better: the sum, over the different words of an answer,
of how much likelier a word is in positive than in negative sentences (naive Bayes on the sentences of Pang and Lee,
2005, another text). A share of the labels is then exchanged at random. Each loss trains on the same pairs in the same
order, and its policy is judged by the same program on openings that no pair has: win rate is the probability that an
answer of the policy scores above one of the start's to the same opening, ties counting half, over all pairs of several
samples each.

Losses: DPO, cDPO (labels smoothed), rDPO (unbiased where the rate is known), R3M (a cap on each pair's pull) and APS (a
scale for each pair). They are the functions that the trainers of `burnish align` minimise (rDPO: as TRL has it), in
a plain loop on token numbers, with the start's log-probabilities computed once a seed: what a trainer does beside the
loss would be most of a cell's cost. Each is given the same search at 20 % exchanged labels, on pairs of a seed that is
not reported: three choices of beta and learning rate, then two values of its own parameter at the best of them (DPO has
none: two more learning rates). The best has the largest win rate among those that stay within LIMIT nats of the start
for an answer, so that no loss wins by leaving the language; all that was tried is kept. It is then used at every rate:
in use the rate is not known.

Measures beside the win rate: divergence from the start (mean log-ratio of the policy's own answers, nats), and the
share of exchanged labels that the policy has taken over, and of right ones. Intervals: Student's t over seeds, paired
against DPO. DPO on labels exchanged at 50 %, which say nothing, shows whether the instrument works.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata

import burnish
from burnish.align.losses import smoothed_pair_loss
from burnish.align.maths.noise import uniform

SIZES = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
VOCABULARY, CONTEXT = 2048, 128
STEPS = 4 if experiment.SMOKE else 300
OPENING, ANSWER = 6, 12
"""Tokens of an opening and of an answer: of one length, so that nothing is padded."""
PAIRS, EPOCHS, BATCH = (32, 1, 16) if experiment.SMOKE else (512, 2, 32)
JUDGED, SAMPLES = (8, 2) if experiment.SMOKE else (192, 4)
SEEDS, TUNING_SEEDS = (range(1), range(100, 101)) if experiment.SMOKE else (range(5), range(100, 101))
TRIAL_SEED = 200
"""For looking at single cells by --try; it is in no search and no table."""
NOISE = (0.0, 0.2, 0.4)
TUNING_NOISE, COIN = 0.2, 0.5
LIMIT = 8.0
GRID = [{"beta": beta, "rate": rate} for beta, rate in ((0.1, 5e-4), (0.1, 1e-3), (0.5, 1e-3))]
LOSSES: dict[str, dict[str, float]] = {
    "DPO": {},
    "cDPO": {"label_smoothing": 0.2},
    "rDPO": {"label_smoothing": 0.2},
    "R3M": {"lam": 0.5},
    "APS": {"rho0": 0.1},
}
PAIR_LOSSES = {"DPO": "bt", "cDPO": "bt", "R3M": "r3m", "APS": "aps"}
OWN: dict[str, list[dict[str, float]]] = {
    "DPO": [{"rate": 7e-4}, {"rate": 2e-3}],
    "cDPO": [{"label_smoothing": 0.1}, {"label_smoothing": 0.3}],
    "rDPO": [{"label_smoothing": 0.1}, {"label_smoothing": 0.3}],
    "R3M": [{"lam": 0.3}, {"lam": 0.75}],
    "APS": [{"rho0": 0.05}, {"rho0": 0.3}],
}


# -- the attribute and its program -----------------------------------------------------------------------------------


class Program:
    """Scores a text: the sum of log P(word | positive) / P(word | negative) over its different words."""

    def __init__(self, directory: Path) -> None:
        counts = {0: Counter(), 1: Counter()}
        for row in rows_of(directory / "sentence_polarity.jsonl.gz"):
            counts[row["label"]].update(set(words_of(row["text"])))
        known = [word for word in counts[0] | counts[1] if counts[0][word] + counts[1][word] >= 8]
        self.weight = {word: math.log((counts[1][word] + 1) / (counts[0][word] + 1)) for word in known}

    def __call__(self, text: str) -> float:
        return sum(self.weight.get(word, 0.0) for word in set(words_of(text)))


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text)


def rows_of(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_reviews(directory: Path) -> tuple[list[str], list[str]]:
    """Reviews to train the start on, and sentences of the others, each once, in a drawn order."""
    training, lines = [], {}
    for row in rows_of(directory / "movie_reviews.jsonl.gz"):
        if int(experiment.digest(row["id"])[:8], 16) % 5:
            training.append(row["text"])
        else:
            lines |= dict.fromkeys(row["text"].splitlines())
    order = np.random.default_rng(0).permutation(len(lines))
    listed = list(lines)
    return training, [listed[place] for place in order]


# -- the start -------------------------------------------------------------------------------------------------------


def train_start(work: Path, training: list[str]) -> Path:
    """The checkpoint that every cell starts from, made by `burnish train`, which goes on where it was stopped."""
    start = work / "start"
    if start.is_dir():
        return start
    config, data = work / "config.json", work / "reviews.jsonl"
    config.write_text(json.dumps(SIZES))
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in training))
    options = {
        "tokenizer": f"bpe:{VOCABULARY}",
        "data": str(data),
        "context": str(CONTEXT),
        "batch": "32",
        "steps": str(STEPS),
        "save-every": "25",
        "lr": "3e-3",
        "seed": "0",
    }
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    subprocess.run([sys.executable, "-m", "burnish", "train", str(config), *given, "-o", str(start)], check=True)
    return start


def openings_of(lines: list[str], tokenizer: Any) -> torch.Tensor:
    """The first OPENING tokens of every sentence that goes on after them with a new word, each once."""
    found: dict[tuple[int, ...], None] = {}
    for line in lines:
        ids = tokenizer(line, add_special_tokens=False)["input_ids"]
        if len(ids) > OPENING + 4 and tokenizer.decode(ids[OPENING : OPENING + 1]).startswith(" "):
            found[tuple(ids[:OPENING])] = None
    return torch.tensor(list(found))


def drawn_answers(module: Any, openings: torch.Tensor, never: int, seed: int) -> torch.Tensor:
    """An answer of ANSWER tokens to each opening, drawn at temperature 1 and without the token `never`."""
    generator = torch.Generator().manual_seed(seed)
    tokens, past, drawn = openings, None, []
    with torch.no_grad():
        for _ in range(ANSWER):
            found = module(input_ids=tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
            past, logits = found.past_key_values, found.logits[:, -1].float()
            logits[:, never] = -torch.inf
            tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            drawn.append(tokens)
    return torch.cat(drawn, dim=1)


def log_prob(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """Of each row's answer, its last ANSWER tokens, given its opening, in nats."""
    logits = module(input_ids=rows[:, :-1], use_cache=False, logits_to_keep=ANSWER).logits
    return logits.log_softmax(-1).gather(-1, rows[:, -ANSWER:, None])[..., 0].sum(dim=1)


def log_prob_of_all(module: Any, rows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([log_prob(module, part) for part in rows.split(256)])


# -- cells -----------------------------------------------------------------------------------------------------------


class Pairs:
    """Pairs of one seed, the better answer first, with the start's log-probabilities, [pairs, 2]."""

    def __init__(self, bench: Bench, openings: torch.Tensor, seed: int) -> None:
        sides = [bench.answers(bench.start.module, openings, seed + extra) for extra in (1000, 2000)]
        scores = torch.tensor([bench.scores(side) for side in sides], dtype=torch.float64)
        differ = scores[0] != scores[1]  # two answers that score the same are no pair
        first = (scores[0] > scores[1])[:, None]
        better, worse = torch.where(first, *sides), torch.where(first, *sides[::-1])
        self.rows = torch.stack([torch.cat([openings, side], dim=1)[differ] for side in (better, worse)], dim=1)
        self.before = torch.stack([log_prob_of_all(bench.start.module, self.rows[:, side]) for side in (0, 1)], dim=1)

    def __len__(self) -> int:
        return len(self.rows)

    def log_ratio(self, module: Any) -> torch.Tensor:
        """log-ratio of the better minus the worse answer."""
        sides = [log_prob_of_all(module, self.rows[:, side]) - self.before[:, side] for side in (0, 1)]
        return sides[0] - sides[1]


class Bench(experiment.Kept):
    """Cells by name: "loss, rate of exchanged labels, seed, settings"."""

    def __init__(self, work: Path, directory: Path) -> None:
        super().__init__(work)
        training, lines = read_reviews(directory)
        self.program = Program(directory)
        self.start = burnish.load(train_start(work, training), dtype=torch.float32)
        self.openings = openings_of(lines, self.start.tokenizer)
        self.hashes = {
            "tuning": [experiment.digest(self.part(seed).numpy()) for seed in TUNING_SEEDS],
            "reporting": [experiment.digest(self.part(seed).numpy()) for seed in SEEDS],
        }
        self.judged = self.openings[:JUDGED].repeat_interleave(SAMPLES, dim=0)
        self.before = self.judgement(self.start.module, 1)[1]
        self.made: dict[int, Pairs] = {}

    def part(self, seed: int) -> torch.Tensor:
        """The openings of a seed, which are nobody else's."""
        first = JUDGED + [*SEEDS, *TUNING_SEEDS, TRIAL_SEED].index(seed) * PAIRS
        found = self.openings[first : first + PAIRS]
        if len(found) < PAIRS:
            raise SystemExit(f"there are only {len(self.openings)} openings")
        return found

    def answers(self, module: Any, openings: torch.Tensor, seed: int) -> torch.Tensor:
        return drawn_answers(module, openings, int(self.start.tokenizer.eos_token_id), seed)  # type: ignore[arg-type]  # it has one

    def scores(self, answers: torch.Tensor) -> list[float]:
        return [self.program(text) for text in self.start.tokenizer.batch_decode(answers)]

    def judgement(self, module: Any, seed: int) -> tuple[torch.Tensor, np.ndarray]:
        """The module's answers to the judged openings, and their scores, [openings, samples]."""
        answers = self.answers(module, self.judged, seed)
        return answers, np.array(self.scores(answers)).reshape(-1, SAMPLES)

    def pairs(self, seed: int) -> Pairs:
        if seed not in self.made:
            self.made[seed] = Pairs(self, self.part(seed), seed)
        return self.made[seed]

    def names(self) -> list[str]:
        """The search first, then the cells that are reported, one seed after the other."""
        names, best = [], {}
        for loss in LOSSES:
            tried = self.search(loss)
            names += [self.name(loss, TUNING_NOISE, seed, choice) for choice in tried for seed in TUNING_SEEDS]
            if len(tried) == len(GRID) + len(OWN[loss]) and all(map(self.has, names)):
                best[loss] = self.best(loss, tried)
        if len(best) < len(LOSSES):
            return names
        return names + [name for seed in SEEDS for name in self.cells_of(seed, best)]

    def cells_of(self, seed: int, best: dict[str, Any]) -> list[str]:
        """What is reported of a seed."""
        cells = [self.name(loss, noise, seed, best[loss]) for noise in NOISE for loss in LOSSES]
        return [*cells, self.name("DPO", COIN, seed, best["DPO"])]

    def name(self, loss: str, noise: float, seed: int, choice: dict[str, Any]) -> str:
        return f"{loss}, {noise:g}, {seed}, " + " ".join(f"{key}={value:g}" for key, value in choice.items())

    def search(self, loss: str) -> list[dict[str, Any]]:
        """What is to be tried: the grid, and when it is done the loss's own parameter at its best."""
        done = [choice for choice in GRID if self.known(loss, choice)]
        return GRID if len(done) < len(GRID) else [*GRID, *(self.best(loss, GRID) | own for own in OWN[loss])]

    def known(self, loss: str, choice: dict[str, Any]) -> bool:
        return all(self.has(self.name(loss, TUNING_NOISE, seed, choice)) for seed in TUNING_SEEDS)

    def tuned(self, loss: str, choice: dict[str, Any]) -> tuple[float, float]:
        """(win rate, divergence), means over the tuning seeds."""
        cells = [self.read(self.name(loss, TUNING_NOISE, seed, choice)) for seed in TUNING_SEEDS]
        return tuple(float(np.mean([cell[key] for cell in cells])) for key in ("win", "divergence"))  # type: ignore[return-value]

    def best(self, loss: str, tried: list[dict[str, Any]]) -> dict[str, Any]:
        def worth(choice: dict[str, Any]) -> tuple[bool, float]:
            win, divergence = self.tuned(loss, choice)
            return divergence <= LIMIT, win if divergence <= LIMIT else -divergence

        return max(tried, key=worth)

    def measure(self, name: str) -> dict[str, Any]:
        loss, noise, seed, choice = name.split(", ")
        settings = {key: float(value) for key, _, value in (part.partition("=") for part in choice.split())}
        return self.cell(loss, float(noise), int(seed), settings)

    def cell(self, loss: str, noise: float, seed: int, choice: dict[str, float]) -> dict[str, Any]:
        pairs = self.pairs(seed)
        wrong = uniform(len(pairs), noise, torch.Generator().manual_seed(seed))
        policy = self.train(loss, pairs, wrong, seed, LOSSES[loss] | choice)
        answers, after = self.judgement(policy, 2)
        rows = torch.cat([self.judged, answers], dim=1)
        apart = log_prob_of_all(policy, rows) - log_prob_of_all(self.start.module, rows)
        ratio = pairs.log_ratio(policy).numpy()
        return {
            "win": win_rate(after, self.before),
            "score": float(after.mean()),
            "divergence": float(apart.mean()),
            "right labels learned": share(ratio > 0, ~wrong.numpy()),
            "wrong labels learned": share(ratio < 0, wrong.numpy()),
            "example": self.start.tokenizer.decode(rows[0]),
        }

    def train(self, loss: str, pairs: Pairs, wrong: torch.Tensor, seed: int, settings: dict[str, float]) -> Any:
        """A policy: AdamW over EPOCHS passes, the learning rate rising for a tenth and then falling to nothing."""
        given = {key: value for key, value in settings.items() if key not in ("beta", "rate")}
        module = copy.deepcopy(self.start.module)
        optimizer = torch.optim.AdamW(module.parameters(), lr=settings["rate"], weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        steps = EPOCHS * (len(pairs) // BATCH)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
        sign = torch.where(wrong, -1.0, 1.0)
        for _ in range(EPOCHS):
            for places in torch.randperm(len(pairs), generator=generator).split(BATCH):
                if len(places) < BATCH:
                    continue
                rows = pairs.rows[places]
                found = log_prob(module, rows.flatten(0, 1)).reshape(-1, 2) - pairs.before[places]
                margin = settings["beta"] * sign[places] * (found[:, 0] - found[:, 1])
                loss_of(loss, margin, given).mean().backward()
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        return module


def loss_of(name: str, margin: torch.Tensor, given: dict[str, float]) -> torch.Tensor:
    if name == "rDPO":  # TRL's "robust": the loss whose mean over the exchange is DPO's on right labels
        e = given["label_smoothing"]
        return ((1 - e) * F.softplus(-margin) - e * F.softplus(margin)) / (1 - 2 * e)
    rest = dict(given)
    smoothing = rest.pop("label_smoothing", 0.0)
    return smoothed_pair_loss(PAIR_LOSSES[name], margin, smoothing, **rest)[0]  # type: ignore[arg-type]


def rate_at(step: int, steps: int) -> float:
    rise = max(1, steps // 10)
    return (step + 1) / rise if step < rise else (steps - step) / max(1, steps - rise)


def share(found: np.ndarray, among: np.ndarray) -> float | None:
    return float(found[among].mean()) if among.any() else None


def win_rate(ours: np.ndarray, theirs: np.ndarray) -> float:
    """P(ours > theirs) + P(equal) / 2 over all samples of one opening, and over openings."""
    wins = []
    for mine, other in zip(ours, theirs, strict=True):
        above = rankdata([*mine, *other])[: len(mine)].sum() - len(mine) * (len(mine) + 1) / 2
        wins.append(above / (len(mine) * len(other)))
    return float(np.mean(wins))


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--data", type=Path, required=True, help="directory with the two sets of reviews")
    command.keeps("where the start and finished cells are kept")
    command.add_argument("--try", dest="trial", help="one cell by name, kept beside the others and not reported")
    arguments = command.read()
    torch.set_num_threads(1)
    bench = Bench(arguments.work, arguments.data)
    if arguments.trial:
        bench.run(lambda: [arguments.trial], bench.measure)
        print(json.dumps(bench.read(arguments.trial), indent=1))
        return
    claims = experiment.Kept(arguments.work / "claimed")

    def unclaimed() -> list[str]:
        return [name for name in bench.names() if not claims.has(name)]

    def claimed(name: str) -> dict[str, Any]:
        claims.keep(name, {})
        try:
            return bench.measure(name)
        finally:
            claims.file(name).unlink()

    bench.run(unclaimed, claimed, arguments.minutes)
    content = content_of(bench)
    if content["seeds"]["reporting"]:
        experiment.record(arguments.out, __doc__, content)


# -- what is reported ------------------------------------------------------------------------------------------------


def content_of(bench: Bench) -> dict[str, Any]:
    """Of all seeds whose cells are there, in whole."""
    searches, best = {}, {}
    for loss in LOSSES:
        tried = [choice for choice in bench.search(loss) if bench.known(loss, choice)]
        if len(tried) < len(GRID) + len(OWN[loss]):
            return {"seeds": {"reporting": []}}
        best[loss] = bench.best(loss, tried)
        values = [dict(zip(("win", "divergence"), bench.tuned(loss, choice), strict=True)) for choice in tried]
        searches[loss] = [{"settings": choice} | value for choice, value in zip(tried, values, strict=True)]
    seeds = [seed for seed in SEEDS if all(map(bench.has, bench.cells_of(seed, best)))]
    cells = {}
    for loss in LOSSES:
        for noise in (*NOISE, *([COIN] if loss == "DPO" else [])):
            cells[f"{loss}, {noise:g}"] = [bench.read(bench.name(loss, noise, seed, best[loss])) for seed in seeds]
    every = [*cells.values(), *([bench.read(name)] for name in bench.names() if TUNING_SEEDS[0] <= seed_of(name))]
    return {
        "data": "movie reviews (Pang and Lee, 2004) and sentence polarity (Pang and Lee, 2005), both CC BY 4.0",
        "slices": bench.hashes,
        "settings": {
            "parameters": bench.start.module.num_parameters(),
            "steps of the start": STEPS,
            "pairs": {seed: len(bench.pairs(seed)) for seed in seeds},
            "epochs": EPOCHS,
            "batch": BATCH,
            "tokens": {"opening": OPENING, "answer": ANSWER},
            "judged": {"openings": JUDGED, "samples": SAMPLES},
            "limit": LIMIT,
            "losses": LOSSES,
        },
        "seeds": {"tuning": list(TUNING_SEEDS), "reporting": seeds},
        "tried": searches,
        "chosen": {loss: LOSSES[loss] | choice for loss, choice in best.items()},
        "cells": cells,
        "cpu_seconds": round(sum(cell["cpu_seconds"] for part in every for cell in part)),
    }


def seed_of(name: str) -> int:
    return int(name.split(", ")[2])


def over(results: dict[str, Any], loss: str, noise: float, key: str) -> np.ndarray:
    return np.array([cell[key] for cell in results["cells"][f"{loss}, {noise:g}"]])


def tables(results: dict[str, Any]) -> dict[str, str]:
    wins, taken = [], []
    for loss in LOSSES:
        values = [100 * over(results, loss, noise, "win") for noise in NOISE]
        gaps = [value - 100 * over(results, "DPO", noise, "win") for value, noise in zip(values, NOISE, strict=True)]
        cells = [experiment.cell(experiment.over_seeds(value), ".1f") for value in values]
        against = [experiment.cell(experiment.over_seeds(gap), "+.1f") if loss != "DPO" else "" for gap in gaps]
        wins.append([loss, *(part for pair in zip(cells, against, strict=True) for part in pair)])
        learned = [100 * over(results, loss, noise, "wrong labels learned").astype(float) for noise in NOISE[1:]]
        away = [over(results, loss, noise, "divergence") for noise in NOISE]
        taken.append(
            [loss, described(results["chosen"][loss]), *(f"{one.mean():.1f}" for one in away)]
            + [experiment.cell(experiment.over_seeds(one), ".0f") for one in learned]
        )
    coin = experiment.over_seeds(100 * over(results, "DPO", COIN, "win"))
    wins.append(["DPO, half of the labels exchanged", experiment.cell(coin, ".1f"), *[""] * (2 * len(NOISE) - 1)])
    heads = [part for noise in NOISE for part in (f"{noise:.0%} exchanged, win rate % (95 %)", "against DPO")]
    tried = [
        [loss, described(row["settings"]), f"{100 * row['win']:.1f}", f"{row['divergence']:.1f}"]
        for loss, rows in results["tried"].items()
        for row in rows
    ]
    return {
        "win": experiment.table(["loss", *heads], wins),
        "away": experiment.table(
            ["loss", "chosen", *(f"nats from the start, {noise:.0%}" for noise in NOISE)]
            + [f"wrong labels learned of {noise:.0%}, % (95 %)" for noise in NOISE[1:]],
            taken,
        ),
        "tried": experiment.table("loss | settings | win rate at 20 % | nats from the start", tried),
    }


def described(settings: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in settings.items())


def pictures(results: dict[str, Any]) -> dict[str, str]:
    from picture import svg

    from burnish.core.page import Datum, Figure, Series

    series, ends = [], []
    for loss in LOSSES:
        found = [experiment.over_seeds(100 * over(results, loss, noise, "win")) for noise in NOISE]
        data = [
            Datum(100 * noise, one["mean"], one["low"], one["high"]) for noise, one in zip(NOISE, found, strict=True)
        ]
        series.append(Series(loss, data, line=True))
        ends.append(f"{loss} from {found[0]['mean']:.1f} to {found[-1]['mean']:.1f}")
    figure = Figure(
        title="Win rate against the start, by the share of exchanged labels",
        description=", ".join(ends),
        x_label="labels exchanged, %",
        y_label="win rate, %",
        series=series,
        log_y=False,
    )
    return {"win": svg(figure)}


if __name__ == "__main__":
    main()
