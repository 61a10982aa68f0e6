"""Do skills that evolved on problems help a tiny model more than best-of-n of the same cost, and does inheriting them?

    python benchmarks/reason_population.py --work runs/reason-tiny --minutes 10     # again, until all is done

The model is the one of `reason_tiny.py`, in the same directory: it has learned one task and two forms of prompt,
follows no instruction, and so is the hardest case for skills in words. Two populations evolve on the same problems, one
whose children inherit, one whose children begin anew; other problems choose each one's winner; on a third set, which
neither has seen, the winners answer beside best-of-n by mean log-probability, with n from 1 to 12 from the same
samples. What is compared, paired by problem, is a winner and the best-of-n that costs as much, between two n in
proportion.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import reason_tiny

SEEDS = (0, 1)
ARMS = {"children inherit": True, "children begin anew": False}
MEMBERS, GENERATIONS, BATCH, UNSEEN, TEST, SAMPLES, MOST = (
    (2, 1, 2, 2, 2, 2, 3) if experiment.SMOKE else (5, 3, 12, 40, 90, 4, 12)
)
PARTS = {"learn": 10, "unseen": 11, "test": 12}
"""Of the problems of `reason_tiny.py`, which takes the first three for itself."""
SAMPLING: dict[str, Any] = {"temperature": 1.0, "max_tokens": 80, "logprobs": True}


class Bench(experiment.Kept):
    """What is measured, by name: "seed, population"."""

    def __init__(self, work: Path, *, smoke: bool) -> None:
        super().__init__(work / "population")
        self.work, self.tiny = work, reason_tiny.Bench(work, smoke=smoke)
        self.tiny.problems = max(BATCH * GENERATIONS, UNSEEN, TEST)

    def names(self) -> list[str]:
        trained = [seed for seed in SEEDS if self.model(seed).is_dir()]
        return [f"{seed}, population" for seed in trained]

    def model(self, seed: int) -> Path:
        return self.tiny.model(seed, "large") / "nodes" / "aggregating"

    def problems(self, seed: int, part: str, number: int) -> list[dict[str, Any]]:
        return self.tiny.chains(seed, PARTS[part])[:number]

    def measure(self, name: str) -> dict[str, Any]:
        """Both evolutions, then one run of all that is compared."""
        from burnish.reason import strategy
        from burnish.reason.evolve import evolve
        from burnish.reason.harness import run
        from burnish.reason.strategies.population_generations import Evolution
        from burnish.verify import verifier

        seed = int(name.split(", ")[0])
        learn, unseen = (self.problems(seed, *one) for one in (("learn", BATCH * GENERATIONS), ("unseen", UNSEEN)))
        place, found = self.work / "population" / str(seed), {}
        settings: dict[str, Any] = {"members": MEMBERS, "children": MEMBERS, "generations": GENERATIONS, "batch": BATCH}
        with reason_tiny.serving(self.model(seed), "large", SAMPLING) as endpoint, verifier("chain") as chain:
            for arm, inherits in ARMS.items():
                evolved = evolve(
                    learn,
                    unseen,
                    chain,
                    Evolution(**settings, inherit=inherits),
                    [endpoint],
                    place / arm.replace(" ", "-"),
                    seed=seed,
                )
                history = [{key: row[key] for key in ("generation", "best", "mean")} for row in evolved.history]
                found[arm] = {"winner": evolved.team.name, "unseen": evolved.scores, "history": history}
            winners = [f"population(run={place / arm.replace(' ', '-')},n={SAMPLES})" for arm in ARMS]
            best = [f"best-of-n(n={n},score=logprob)" for n in range(1, MOST + 1)]
            test = self.problems(seed, "test", TEST)
            asked = {strategy(spec).label: spec for spec in (*best, *winners)}  # two winners may be the same
            records = run(test, chain, list(asked.values()), [endpoint], place / "test", seed=seed, curves=False)
        for arm, spec in zip(ARMS, winners, strict=True):
            found[arm] |= kept(records, strategy(spec).label)
        return {"arms": found, "best": [kept(records, strategy(spec).label) for spec in best]}


def kept(records: dict[str, dict[str, Any]], label: str) -> dict[str, list[float]]:
    """Of one strategy, score and cost of every problem; a token read costs a quarter of one that is written."""
    mine = [records[name] for name in sorted(records) if records[name]["strategy"] == label]
    costs = [
        reason_tiny.cost({m: [one["prompt"], one["completion"]] for m, one in record["used"].items()}, reason_tiny.READ)
        for record in mine
    ]
    return {"scores": [record["score"] for record in mine], "costs": costs}


def summary(bench: Bench) -> dict[str, Any]:
    measured = [bench.read(name) for name in bench.names() if bench.has(name)]
    rows = []
    for arm in ARMS:
        score, other = [], []
        for one in measured:
            best = [np.array(each["scores"]) for each in one["best"]]
            costs = [float(np.mean(each["costs"])) for each in one["best"]]
            mine = one["arms"][arm]
            place = float(np.interp(np.mean(mine["costs"]), costs, range(len(costs))))
            low, share = int(place), place - int(place)
            score.append(np.array(mine["scores"]))
            other.append((1 - share) * best[low] + share * best[min(low + 1, len(best) - 1)])
        whole, against = np.concatenate(score), np.concatenate(other)
        rows.append(
            {
                "arm": arm,
                "winner": [one["arms"][arm]["winner"] for one in measured],
                "unseen": [one["arms"][arm]["unseen"] for one in measured],
                "history": [one["arms"][arm]["history"] for one in measured],
                "accuracy": reason_tiny.as_dict(whole),
                "best of n": reason_tiny.as_dict(against),
                "difference": reason_tiny.paired(whole, against),
                "score": whole.tolist(),
            }
        )
    inherits, anew = (np.array(row.pop("score")) for row in rows)
    ablation = reason_tiny.paired(inherits, anew)
    number = {"seeds": len(measured), "problems": len(inherits)}
    return number | {"arms": rows, "inheriting less beginning anew": ablation}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    rows = [
        [
            row["arm"],
            ", ".join("nobody's skills" if one == "bare" else one for one in row["winner"]),
            ", ".join(f"{one['bare']:.2f}" for one in row["unseen"]),
            ", ".join(f"{max(v for name, v in one.items() if name != 'bare'):.2f}" for one in row["unseen"]),
            " to ".join(f"{np.mean([one[end]['mean'] for one in row['history']]):.2f}" for end in (0, -1)),
            experiment.cell(row["accuracy"]),
            f"{row['best of n']['mean']:.3f}",
            experiment.cell(row["difference"], "+.3f"),
        ]
        for row in results["arms"]
    ]
    header = (
        "population | unseen problems chose | there, without skills: | with the best skills: | "
        "mean fitness, first to last generation: | accuracy, 4 samples (95 %): | best-of-n of its cost: | "
        "difference (95 %):"
    )
    ablation = ["inheriting less beginning anew", "", "", "", "", "", ""]
    rows.append([*ablation, experiment.cell(results["inheriting less beginning anew"], "+.3f")])
    return {"comparison": experiment.table(header, rows)}


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps("the directory of reason_tiny.py, whose models are asked")
    options = command.read()
    os.environ |= {"PYTHONPATH": str(reason_tiny.ROOT / "src"), "OMP_NUM_THREADS": "1"}
    bench = Bench(options.work, smoke=options.smoke)
    if not bench.names():
        command.error(f"{options.work} holds no model of reason_tiny.py; run that first")
    if bench.run(bench.names, bench.measure, options.minutes):
        experiment.record(options.out, __doc__, summary(bench))


if __name__ == "__main__":
    main()
