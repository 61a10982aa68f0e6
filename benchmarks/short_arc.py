"""Fewer tokens at equal accuracy: does Short-ARC hold accuracy, and what do rules without a constraint do?

A 0.6 M Llama that was trained on verifiable chains with needless repeats (the first half of recipes/short_arc.yaml)
goes on by GRPO under several rewards, equal in everything else, at a rate that falls to zero. What is quoted is the
mean of the last evaluations, on problems that were never trained on, for each seed; accuracy-only training comes first,
so that its spread over seeds says what a difference can mean.

Beside them stands what needs no reinforcement: the start is trained once on its own shortest right answers
(`burnish data select`) to the same problems, of as many samples, with the settings of recipes/own_answers.yaml;
nothing about it was chosen here. A second way, settled after the first had missed 30 % fewer tokens by a point and
before it was measured, takes twice as many samples.

    python benchmarks/short_arc.py --start runs/short_arc/nodes/settled --work DIR [--minutes 20] [--seeds 0 1]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from experiment import SMOKE, Command, Kept, cell, digest, over_seeds, record, table

LENGTHS = 8
EACH = 2 if SMOKE else 40
"""Evaluation problems of every number of steps."""
UPDATES = 4 if SMOKE else 48
LAST = 3
"""Evaluations whose mean is the result, `UPDATES // 12` updates apart."""
PROMPTS, ROLLOUTS, LONGEST = (2, 4, 64) if SMOKE else (12, 8, 256)
RATE = 3e-4
"""At the start; it falls to zero."""
SEEDS = (0, 1, 2)
ARMS: dict[str, dict[str, Any]] = {
    "accuracy only": {"length_shaping": "none"},
    "Short-ARC": {"length_shaping": "short_arc"},
    "Kimi": {"length_shaping": "kimi"},
    "fixed penalty": {"length_shaping": "a_dlp", "shaping_options": {"price": 0.005}},
    "Short-ARC, divided by the deviation": {"length_shaping": "short_arc", "scale_rewards": "group"},
    "LASER-D": {"length_shaping": "laser_d", "shaping_options": {"limits": [40, 60, 80]}},
}
KIND: dict[str, Any] = {"repeat": 0.6, "slips": 0.02}
MAIN = 3
"""Rewards that are always measured; the others are for longer evenings."""
OWN = {"own shortest answers": ROLLOUTS, "own shortest answers of twice as many": 2 * ROLLOUTS}
"""Samples of each problem."""
DRAWS = LAST
"""Of the start, and of what is trained on its own answers: as many as the others have evaluations."""
SELECTED: dict[str, Any] = {"verifier": "chain", "max_new_tokens": LONGEST}
TAUGHT: dict[str, Any] = {"context": 320, "batch": 16, "epochs": 2, "lr": 0.002}


class Bench:
    """The start, its problems and what has been measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import burnish
        from burnish.align.envs import ChainEnv
        from burnish.data.chain import Chains

        self.arms = list(ARMS)[: arguments.arms]
        self.seeds = tuple(arguments.seeds)
        self.kept = Kept(arguments.work)
        self.start = burnish.load(arguments.start)
        kind = Chains(**KIND)
        self.problems = ChainEnv(EACH * LENGTHS, 72, kind, each=True)
        asked = self.problems.questions
        number, seeds = UPDATES * PROMPTS, (*self.seeds, *SEEDS)
        self.training = {seed: ChainEnv(number, 1000 + seed, kind, apart_from=asked) for seed in seeds}

    def names(self) -> Iterable[str]:
        yield "start"
        yield from (f"{own}, seed {seed}" for own in OWN for seed in SEEDS)
        for seed in self.seeds:
            yield from (f"{arm}, seed {seed}" for arm in self.arms)

    def measure(self, name: str) -> dict[str, Any]:
        if name == "start":
            greedy = self.asked(self.start.module, seed=0, temperature=0.0)
            return self.drawn(self.start.module) | {"greedy": greedy}
        arm, _, seed = name.rpartition(", seed ")
        return self.taught(int(seed), OWN[arm]) if arm in OWN else self.trained(arm, int(seed))

    def taught(self, seed: int, k: int) -> dict[str, Any]:
        """The start after its own shortest right answers of k to each problem."""
        import burnish

        started = time.process_time()
        own = burnish.Select(**SELECTED, k=k, seed=seed)(self.start, data=self.training[seed].problems)
        selected = time.process_time() - started
        train = burnish.Train(**TAUGHT, seed=seed)
        model = train(self.start, data=[{"messages": row["messages"]} for row in own.rows])
        seconds = {"selecting": round(selected, 1), "training": round(time.process_time() - started - selected, 1)}
        assert own.about is not None, "selection says what it has counted"
        return self.drawn(model.module) | {
            "cpu_seconds": sum(seconds.values()),
            "seconds": seconds,
            "selection": own.about["selection"],
        }

    def drawn(self, module: Any) -> dict[str, Any]:
        """The mean of several draws of an answer to every problem."""
        return averaged([self.asked(module, seed=1000 + draw) for draw in range(DRAWS)])

    def asked(self, module: Any, *, seed: int, temperature: float = 1.0) -> dict[str, Any]:
        from burnish.align.held_out import answers

        found = answers(
            module,
            self.start.tokenizer,
            self.problems,
            max_new_tokens=LONGEST,
            temperature=temperature,
            seed=seed,
        )
        direct = np.mean([not one.rstrip().rpartition("#")[0] for one in found.texts])
        return {
            "correct": found.correct.tolist(),
            "tokens": found.tokens.tolist(),
            "redundant": found.redundant,
            "direct": float(direct),
        }

    def trained(self, arm: str, seed: int) -> dict[str, Any]:
        import copy

        from datasets import Dataset
        from transformers import TrainerCallback

        from burnish.align.length_control import ShortARCConfig, ShortARCTrainer

        env, found = self.training[seed], list[dict[str, Any]]()
        module, bench = copy.deepcopy(self.start.module), self

        class Asked(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                left = state.max_steps - state.global_step
                every = max(1, UPDATES // 12)
                if left % every == 0 and left // every < LAST:
                    found.append(bench.asked(module, seed=1000 + state.global_step))

        with tempfile.TemporaryDirectory() as scratch:
            trainer = ShortARCTrainer(
                module,
                reward_funcs=[env.reward],  # type: ignore[list-item]  # a callable, not a function
                args=ShortARCConfig(scratch, **settings(seed), **ARMS[arm]),
                train_dataset=Dataset.from_list(env.rows),
                processing_class=self.start.tokenizer,
                callbacks=[Asked()],
            )
            trainer.train()
        keys = {"accuracy": "accuracy", "tokens": "completions/mean_length", "alpha": "alpha", "norm": "grad_norm"}
        history = [
            {short: round(float(row[name]), 5) for short, name in keys.items() if name in row}
            for row in trainer.state.log_history
            if "accuracy" in row
        ]
        return averaged(found) | {
            "history": history,
            "left_out": trainer.left_out_rows / (trainer.left_out_rows + trainer.forwarded_rows),
        }


def averaged(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Several evaluations as one: the mean of each problem."""
    return {
        "correct": np.mean([one["correct"] for one in found], axis=0).round(4).tolist(),
        "tokens": np.mean([one["tokens"] for one in found], axis=0).round(3).tolist(),
        "redundant": float(np.mean([one["redundant"] for one in found])),
        "direct": float(np.mean([one["direct"] for one in found])),
        "evaluations": [[float(np.mean(one["correct"])), float(np.mean(one["tokens"]))] for one in found],
    }


def settings(seed: int) -> dict[str, Any]:
    """Of every reward: the rate falls to zero, and a step's gradient is held to a norm that acts."""
    return {
        "learning_rate": RATE,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 0.1,
        "per_device_train_batch_size": PROMPTS * ROLLOUTS,
        "gradient_accumulation_steps": 1,
        "num_generations": ROLLOUTS,
        "max_completion_length": LONGEST,
        "max_steps": UPDATES,
        "seed": seed,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def main() -> None:
    command = Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--start", type=Path, required=True, help="the supervised checkpoint")
    command.add_argument("--arms", type=int, default=MAIN, help="how many of the rewards, in their order")
    command.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="which")
    arguments = command.read()
    bench = Bench(arguments)
    if not bench.kept.run(bench.names, bench.measure, arguments.minutes):
        return
    hashes = {"tuning": [], "reporting": [digest("\n".join(sorted(bench.problems.questions)))]}
    cells = {name: bench.kept.read(name) for name in bench.names()}
    content = {
        "slices": hashes,
        "problems": EACH,
        "updates": UPDATES,
        "rollouts": [PROMPTS, ROLLOUTS],
        "arms": bench.arms,
        "seeds": list(bench.seeds),
        "own": {"seeds": list(SEEDS), "k": OWN, "settings": TAUGHT | SELECTED},
        "rate": RATE,
        "cells": cells,
    }
    record(arguments.out, __doc__, content, libraries=("trl",))


# -- tables --------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    return {"arms": _arms(results)}


def _arms(results: dict[str, Any]) -> str:
    each, rows = results["problems"], []
    start = results["cells"]["start"]
    first = f"{np.mean(start['correct']):.3f}"
    rows.append(["start", first, _bins(start["tokens"], each), _mean(start), *[""] * 4, f"{start['direct']:.1%}"])
    of_rewards = results["seeds"]
    own = results["own"]
    for arm, seeds in [*((arm, of_rewards) for arm in results["arms"]), *((arm, own["seeds"]) for arm in own["k"])]:
        cells = [results["cells"][f"{arm}, seed {seed}"] for seed in seeds]
        plain = [results["cells"][f"accuracy only, seed {seed}"] for seed in seeds if seed in of_rewards]
        tokens = np.mean([one["tokens"] for one in cells], axis=0)
        accuracy, length = _against(cells[: len(plain)], plain)
        same = arm == "accuracy only"
        points, share = _against_start(cells, start)
        rows.append(
            [
                arm,
                ", ".join(f"{np.mean(one['correct']):.3f}" for one in cells),
                _bins(tokens, each),
                ", ".join(map(_mean, cells)),
                points,
                share,
                "" if same else accuracy,
                "" if same else length,
                f"{np.mean([one['direct'] for one in cells]):.1%}",
            ]
        )
    head = (
        "reward, or data | accuracy of the seeds: | tokens at 1 / 4 / 8 steps: | mean tokens of the seeds: | "
        "accuracy against the start, points (95 %, problems): | tokens against it: | "
        "accuracy against accuracy only, points: | tokens against it: | direct answers:"
    )
    return table(head, rows)


def _against_start(cells: list[dict[str, Any]], start: dict[str, Any]) -> tuple[str, str]:
    """The mean of the seeds against the start, problem by problem."""
    from burnish.core.statistics import interval, paired_interval

    right, tokens = (np.mean([one[what] for one in cells], axis=0) for what in ("correct", "tokens"))
    points = paired_interval(100 * right, 100 * np.array(start["correct"]))
    share = interval(tokens, np.array(start["tokens"]), scale="log").map(lambda one: 100 * (one - 1))
    return cell(points, "+.1f"), cell(share, "+.0f") + " %"


def _against(cells: list[dict[str, Any]], plain: list[dict[str, Any]]) -> tuple[str, str]:
    points = [100 * (np.mean(a["correct"]) - np.mean(b["correct"])) for a, b in zip(cells, plain, strict=True)]
    shares = [100 * (np.mean(a["tokens"]) / np.mean(b["tokens"]) - 1) for a, b in zip(cells, plain, strict=True)]
    if len(cells) < 2:
        return f"{points[0]:+.1f}", f"{shares[0]:+.0f} %"
    return cell(over_seeds(points), "+.1f"), cell(over_seeds(shares), "+.0f") + " %"


def _bins(tokens: Any, each: int) -> str:
    by_length = np.asarray(tokens).reshape(-1, each).mean(1)
    return " / ".join(f"{by_length[steps - 1]:.1f}" for steps in (1, 4, 8))


def _mean(found: dict[str, Any]) -> str:
    return f"{np.mean(found['tokens']):.1f}"


if __name__ == "__main__":
    main()
