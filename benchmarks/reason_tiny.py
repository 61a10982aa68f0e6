"""Does a tiny model that was trained to read its own answers gain more from aggregation than a vote of the same cost?

    python benchmarks/reason_tiny.py --work runs/reason-tiny --minutes 60      # again, until all is done

Everything is made here. For each seed `recipes/tiny_reasoner.yaml` trains two models from random weights (0.90 and 0.19
million parameters): `aggregating` went on with rows of which half show four of its own samples, `mixed` with rows of
which half show four samples that are right and wrong among each other, `plain` went on as long with problems alone, and
`single` did not go on. `burnish reason serve --local` serves them, and `burnish.reason` asks them, journalled, at
temperature 1, on chains that no training has seen, other ones for every seed. The settings of the recipe were chosen on
other chains again.

A strategy is compared with the vote of as many plain samples as it costs on the mean, paired by problem. A token that
is read costs READ of one that is written, and all of the small model SMALL of the large; the same tokens are priced
again with reading as dear as writing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import experiment
import numpy as np
import yaml

if TYPE_CHECKING:
    from burnish.reason import Endpoint

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {"large": ROOT / "recipes/tiny_reasoner.yaml", "small": ROOT / "recipes/tiny_reasoner_small.yaml"}
SIZES = {"large": ROOT / "examples" / "reasoner.json", "small": ROOT / "examples" / "reasoner_small.json"}
SEEDS = (0, 1, 2)
PARTS, PROBLEMS = 3, 90
"""Of each seed: parts that are measured one after the other, and the problems of each."""
VOTES = 32
CONFIDENT = 40
"""Problems of each seed whose samples come with 20 alternatives to each token."""
READ = 0.25
SMALL = 0.2
PRICES = {"a token read costs a quarter": READ, "a token read costs as much": 1.0}
RSA = "n=8,k=4,loops=3"
SAME = (f"self-consistency:{VOTES}", "best-of-n(n=8,score=logprob)", "gsa:4", "rsa(n=8,k=4,loops=2)")
GREEDY = "gsa(n=4,temperature=0)"
ARMS = {
    "aggregating": (*SAME, GREEDY),
    "mixed": (*SAME, GREEDY),
    "plain": SAME,
    "single": SAME,
    "routed": (
        f"rsa({RSA})",
        f"routed-rsa(models=small+large,percentiles=0,{RSA},fitness=logprob)",
        f"routed-rsa(models=small+large,percentiles=30,{RSA},fitness=logprob)",
        f"routed-rsa(models=small+large,percentiles=30,{RSA},fitness=random)",
        f"routed-rsa(models=small+large,percentiles=30,{RSA},fitness=logprob,scorer=small)",
    ),
    "confident": ("self-consistency:8",),
}
"""Strategies by which node of the recipe answers; `routed` and `confident` are `aggregating`, the one with the small
model beside it, the other with alternatives to each token."""
ONCE = ("mixed", "plain", "single", "confident")
"""Measured in the first part of a seed alone: what they show is plain after one."""
NODES = ("aggregating", "mixed", "plain", "single")
SMOKE_NODES = {
    "chain": {"number": 24},
    "train": {"steps": 2, "holdout": 0.2},
    "aggregate": {"k": 2, "max_new_tokens": 8},
}


class Bench(experiment.Kept):
    """What is measured, by name: "seed, train, size" and "seed, arm, part"."""

    def __init__(self, work: Path, *, smoke: bool) -> None:
        super().__init__(work)
        self.work, self.smoke = work, smoke
        self.places = [
            (seed, part) for seed in (SEEDS[:1] if smoke else SEEDS) for part in range(1 if smoke else PARTS)
        ]
        self.problems = 2 if smoke else PROBLEMS

    def names(self) -> list[str]:
        found: list[str] = []
        for seed, part in self.places:
            found += [f"{seed}, train, {size}" for size in (*SIZES, "mixed") if part == 0]
            found += [f"{seed}, {arm}, {part}" for arm in ARMS if arm not in ONCE or part == 0]
        return found

    def finished(self, arm: str) -> list[tuple[int, int]]:
        """Seeds and parts that an arm has."""
        return [(seed, part) for seed, part in self.places if self.has(f"{seed}, {arm}, {part}")]

    def measure(self, name: str) -> dict[str, Any]:
        seed, what, which = name.split(", ")
        if what == "train":
            return self.train_mixed(int(seed)) if which == "mixed" else self.train(int(seed), which)
        return self.ask(int(seed), what, int(which))

    # -- models --------------------------------------------------------------------------------------------------

    def model(self, seed: int, size: str) -> Path:
        return self.work / f"{size}-{seed}"

    def train(self, seed: int, size: str) -> dict[str, Any]:
        """The recipe from random weights; its chains and its order of training have a seed of their own, too."""
        start, run = self.work / f"{size}-{seed}-start", self.model(seed, size)
        if not start.is_dir():
            burnish(
                *("init", SIZES[size], "--tokenizer", "bpe:400", "--data", ROOT / "src/burnish/reason/prompts"),
                *("--chat-template", ROOT / "examples/reasoner.jinja", "--seed", seed, "-o", start),
            )
        recipe = yaml.safe_load(RECIPES[size].read_text())
        for node in recipe["nodes"]:
            node["seed"] = node.get("seed", 0) + 100 * seed
            if "data" in node:  # of the small model: what the large one has made
                node["data"] = node["data"].replace("runs/reasoner", str(self.model(seed, "large").resolve()))
            if self.smoke:
                node |= SMOKE_NODES[node["stage"]]
        mine = self.work / f"{size}-{seed}.yaml"
        mine.write_text(yaml.safe_dump(recipe, sort_keys=False))
        burnish("run", mine, "--start", start, "-o", run)
        return {"parameters": parameters(run / "nodes" / "aggregating"), "losses": losses(run)}

    def train_mixed(self, seed: int) -> dict[str, Any]:
        """As `aggregating`, but every aggregation prompt has one to three right candidates among its four."""
        nodes, mine = self.model(seed, "large") / "nodes", self.work / f"mixed-{seed}"
        shown, rows = mine / "shown", mine / "rows.jsonl"
        if not shown.is_dir():
            options = ("--share", 1, "--k", 4, "--max-new-tokens", 60, "--seed", 100 * seed + 7)
            burnish("data", "aggregate", nodes / "single", "--data", nodes / "second", *options, "-o", shown)
        plain = _rows(nodes / "second" / "rows.jsonl")
        both = [row for row in _rows(shown / "rows.jsonl") if 1 <= right_candidates(row["messages"]) <= 3]
        kept = [{"messages": row["messages"]} for pair in zip(both, reversed(plain), strict=False) for row in pair]
        rows.write_text("".join(json.dumps(row) + "\n" for row in kept))
        recipe = yaml.safe_load(RECIPES["large"].read_text())
        how = next(node for node in recipe["nodes"] if node["name"] == "aggregating")
        options = [word for name in ("context", "batch", "steps", "lr", "holdout") for word in (f"--{name}", how[name])]
        burnish("train", nodes / "single", "--data", rows, *options, "--seed", 100 * seed, "-o", mine / "model")
        return {"rows": len(kept), "of": len(plain)}

    # -- questions -----------------------------------------------------------------------------------------------

    def chains(self, seed: int, part: int) -> list[dict[str, Any]]:
        """Chains of the recipe's kind that are in no training data of that seed, other ones for every part."""
        from burnish.data.chain import Chains, chain_rows
        from burnish.data.draws import questions_of

        nodes = yaml.safe_load(RECIPES["large"].read_text())["nodes"]
        kind = next(node["kind"] for node in nodes if node["stage"] == "chain")
        rows = self.model(seed, "large") / "nodes"
        seen = questions_of(rows / "first" / "rows.jsonl") | questions_of(rows / "second" / "rows.jsonl")
        kinds = Chains(**kind | {"steps": tuple(kind["steps"])})
        number = self.problems * (part + 1)
        return list(chain_rows(kinds, number, seed=1_000_000 + seed, apart_from=seen, distinct=True))[-self.problems :]

    def ask(self, seed: int, arm: str, part: int) -> dict[str, Any]:
        """One run of the harness on models that a real server holds."""
        from burnish.reason.harness import run
        from burnish.verify import verifier

        problems = self.chains(seed, part)[: CONFIDENT if arm == "confident" else None]
        node = arm if arm in NODES else "aggregating"
        mixed = self.work / f"mixed-{seed}" / "model"
        sampling: dict[str, Any] = {"temperature": 1.0, "max_tokens": 80, "logprobs": True}
        if arm == "confident":
            sampling["top_logprobs"] = 20
        strategies = [smaller(one) for one in ARMS[arm]] if self.smoke else list(ARMS[arm])
        sizes = list(SIZES) if any("small" in one for one in strategies) else ["large"]
        place = self.work / f"asked-{seed}-{arm}-{part}"
        with contextlib.ExitStack() as stack, verifier("chain") as chain:
            models = {size: mixed if arm == "mixed" else self.model(seed, size) / "nodes" / node for size in sizes}
            served = [stack.enter_context(serving(model, size, sampling)) for size, model in models.items()]
            run(problems, chain, strategies, served, place, seed=seed)
        if arm == "confident":
            return {"samples": scored(place, problems)}
        return {"problems": experiment.digest(json.dumps(problems)), **facts(place)}


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def right_candidates(chat: Sequence[dict[str, str]]) -> int:
    """Of an aggregation prompt, how many of the attempts that it shows end with the right answer."""
    answers = re.findall(r"#(\d+)$", chat[0]["content"], re.MULTILINE)
    return answers.count(chat[-1]["content"].rpartition("#")[2])


def smaller(strategy: str) -> str:
    """For a smoke run."""
    for whole, part in ((f":{VOTES}", ":4"), ("gsa:4", "gsa:2"), ("gsa(n=4", "gsa(n=2"), ("n=8,k=4", "n=2,k=2")):
        strategy = strategy.replace(whole, part)
    return strategy


def burnish(*words: object) -> None:
    """A command, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "burnish", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"burnish {words[0]}: {done.stderr[-2000:]}")


@contextlib.contextmanager
def serving(directory: Path, size: str, sampling: dict[str, Any]) -> Iterator[Endpoint]:
    """A checkpoint behind `burnish reason serve --local`, on a port of its own."""
    from burnish.reason import Endpoint

    command = [sys.executable, "-m", "burnish", "reason", "serve", "--local", str(directory), "--name", size]
    server = subprocess.Popen([*command, "--port", "0", "--rows", "192"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        found = re.search(r"http://\S+", said)
        if not found:
            sys.exit(f"no server: {said}")
        address = found.group().rstrip("/").removesuffix("/v1") + "/v1"
        yield Endpoint(address, size, sampling=sampling, concurrency=192, timeout=3600)
    finally:
        server.terminate()
        server.wait()


# -- what is kept of a run -----------------------------------------------------------------------------------------


def facts(place: Path) -> dict[str, Any]:
    """For each strategy scores and tokens of every problem; every vote; the populations."""
    from burnish.reason import JournalReader
    from burnish.reason.curves import votes

    reader = JournalReader(place)
    try:
        records = list(reader.records().values())
        scorings = [call["reply"]["usage"] for call in reader.calls() if call["path"].endswith("/score")]
    finally:
        reader.close()
    found: dict[str, Any] = {"strategies": {}, "votes": []}
    found["scorings"] = [sum(one["prompt"] for one in scorings), sum(one["completion"] for one in scorings)]
    for record in sorted(records, key=lambda one: one["problem"]):
        kept = found["strategies"].setdefault(record["strategy"], {"scores": [], "used": [], "loops": []})
        found["failed"] = found.get("failed", 0) + bool(record["error"])  # and wrong: an empty answer, say
        kept["scores"].append(record["score"])
        kept["used"].append({model: [one["prompt"], one["completion"]] for model, one in record["used"].items()})
        curves = record["curves"]
        worth = [[0.0 if one is None else curves["scores"][one] for one in loop] for loop in curves["loops"]]
        kept["loops"].append([float(np.mean(loop)) for loop in worth])
        if record["strategy"].startswith("self-consistency"):
            (samples,) = curves["samples"].values()
            found["votes"].append(votes(samples["answers"], curves["scores"]).tolist())
    return found


def scored(place: Path, problems: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Of every plain sample: its problem, whether it is right, its mean log-probability and its confidence."""
    from burnish.reason import JournalReader, Reply, Usage
    from burnish.reason.confidence import mean_logprob, peakedness
    from burnish.verify import verifier

    by_name = {problem["id"]: number for number, problem in enumerate(problems)}
    reader, rows = JournalReader(place), []
    with verifier("chain") as chain:
        for call in reader.calls():
            problem = by_name[call["path"].partition("/")[0]]
            kept = call["reply"] | {"usage": Usage(), "logprobs": tuple(map(tuple, call["reply"]["logprobs"]))}
            reply = Reply(**kept)
            right = chain.score(reply.text, problems[problem])
            rows.append([problem, right, mean_logprob(reply), peakedness(reply)])
    reader.close()
    return rows


def parameters(directory: Path) -> int:
    from burnish.core.checkpoint import load

    return load(directory).plan().num_parameters


def losses(run: Path) -> dict[str, float]:
    """Loss on chains of another seed at the end of every training, nats a token."""
    from burnish.core.ledger import LEDGER_FILE, read_rows

    tables = [row for row in read_rows(run / LEDGER_FILE) if row["row"] == "table" and row["name"] == "loss"]
    return {
        row["node"]: [one["validation_loss"] for one in row["rows"] if one.get("validation_loss") is not None][-1]
        for row in tables
    }


# -- what is made of it --------------------------------------------------------------------------------------------


def cost(used: dict[str, list[int]], read: float) -> float:
    """In tokens that the large model writes."""
    each = {"large": 1.0, "small": SMALL}
    return sum(each[model] * (prompt * read + completion) for model, (prompt, completion) in used.items())


def auroc(right: np.ndarray, score: np.ndarray) -> float:
    """The chance that a right sample has a higher score than a wrong one."""
    good, bad = score[right > 0], np.sort(score[right == 0])
    below = np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")
    return float(below.mean() / (2 * len(bad)))


def complete(loops: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Those of problems that have been through all loops: a strategy that an empty answer ended has fewer."""
    return [one for one in loops if len(one) == max(map(len, loops))]


class Part:
    """What one arm of one seed found, at one price of reading."""

    def __init__(self, kept: dict[str, Any], read: float) -> None:
        self.votes = np.array(kept["votes"])
        self.scores = {name: np.array(one["scores"]) for name, one in kept["strategies"].items()}
        self.loops = {name: np.mean(complete(one["loops"]), 0) for name, one in kept["strategies"].items()}
        self.scorings = cost({"small": kept["scorings"]}, read)
        used = {name: one["used"] for name, one in kept["strategies"].items()}
        self.costs = {name: float(np.mean([cost(one, read) for one in all_])) for name, all_ in used.items()}
        vote = next((name for name in self.costs if name.startswith("self-consistency")), None)
        self.sample = self.costs[vote] / self.votes.shape[1] if vote else float("nan")

    def vote(self, samples: float) -> np.ndarray:
        """Of every problem, the vote of so many samples, or of all there are."""
        from burnish.reason.curves import between

        return between(self.votes, min(max(samples, 1.0), self.votes.shape[1]))


def summary(bench: Bench) -> dict[str, Any]:
    places = {arm: bench.finished(arm) for arm in ARMS}
    kept = {
        arm: [joined(bench, arm, [place for place in ones if place[0] == seed]) for seed in sorted(dict(ones))]
        for arm, ones in places.items()
        if ones and arm != "confident"
    }
    seeds = sorted(dict(places["aggregating"]))
    problems = {arm: len(ones) * bench.problems for arm, ones in places.items() if arm in kept}
    found: dict[str, Any] = {"seeds": {arm: sorted(dict(places[arm])) for arm in kept}, "problems": problems}
    trained = {size: [f"{seed}, train, {size}" for seed in seeds] for size in SIZES}
    found["models"] = {
        size: [bench.read(n) for n in names if bench.file(n).is_file()] for size, names in trained.items()
    }
    nodes = [arm for arm in NODES if arm in kept]
    found["votes"] = {
        arm: [votes_at(np.concatenate([one["votes"] for one in kept[arm]]), n) for n in (1, 2, 4, 8, 16, 32)]
        for arm in nodes
    }
    found["prices"] = {title: {arm: against_votes(kept[arm], read) for arm in nodes} for title, read in PRICES.items()}
    if "routed" in kept:
        found["routing"] = {title: routing(kept["routed"], read) for title, read in PRICES.items()}
    if places["confident"]:
        confident = [bench.read(f"{seed}, confident, 0")["samples"] for seed, _ in places["confident"]]
        found["auroc"] = scores_of_samples(confident)
    return found


def joined(bench: Bench, arm: str, places: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The parts of one seed as one."""
    parts = [bench.read(f"{seed}, {arm}, {part}") for seed, part in places]
    found: dict[str, Any] = {"votes": [row for one in parts for row in one["votes"]], "strategies": {}}
    found["scorings"] = np.sum([one.get("scorings", [0, 0]) for one in parts], 0).tolist()
    for name in parts[0]["strategies"]:
        ones = [one["strategies"][name] for one in parts]
        found["strategies"][name] = {key: [row for one in ones for row in one[key]] for key in ones[0]}
    return found


def votes_at(votes: np.ndarray, number: int) -> dict[str, float]:
    return {"samples": number} | as_dict(votes[:, min(number, votes.shape[1]) - 1])


def against_votes(kept: Sequence[dict[str, Any]], read: float) -> list[dict[str, Any]]:
    """Every strategy of an arm beside the vote of its own model that costs as much."""
    parts = [Part(one, read) for one in kept]
    rows = []
    for name in parts[0].scores:
        samples = [part.costs[name] / part.sample for part in parts]
        score = np.concatenate([part.scores[name] for part in parts])
        own = [part.vote(number) for part, number in zip(parts, samples, strict=True)]
        rows.append(
            {
                "strategy": name,
                "accuracy": as_dict(score),
                "by_seed": [float(part.scores[name].mean()) for part in parts],
                "samples": float(np.mean(samples)),
                "dearer_than_all": bool(max(samples) > parts[0].votes.shape[1]),
                "vote": as_dict(np.concatenate(own)),
                "difference": paired(score, np.concatenate(own)),
                "difference_by_seed": [
                    float((part.scores[name] - vote).mean()) for part, vote in zip(parts, own, strict=True)
                ],
                "loops": np.mean([part.loops[name] for part in parts], 0).tolist(),
            }
        )
    return sorted(rows, key=lambda row: row["samples"])


def routing(kept: Sequence[dict[str, Any]], read: float) -> list[dict[str, Any]]:
    """Cost saved against RSA of the large model alone, and what it does to accuracy."""
    parts = [Part(one, read) for one in kept]
    dear = next(name for name in parts[0].scores if name.startswith("rsa") and "loops=3" in name)
    whole = np.concatenate([part.scores[dear] for part in parts])
    rows = []
    for name in parts[0].scores:
        if not name.startswith("routed"):
            continue
        score = np.concatenate([part.scores[name] for part in parts])
        saved = [1 - part.costs[name] / part.costs[dear] for part in parts]
        second = [part.scorings / (part.costs[name] * len(part.scores[name])) for part in parts]
        overhead = float(np.mean(second)) if "scorer=" in name else 0.0
        rows.append(
            {"strategy": name, "accuracy": as_dict(score), "saved": float(np.mean(saved)), "saved_by_seed": saved}
            | {"difference": paired(score, whole), "overhead": overhead}
        )
    return rows


def scores_of_samples(kept: Sequence[Sequence[Sequence[Any]]]) -> dict[str, Any]:
    """AUROC of both scores over all samples of a seed, and over the samples of one problem alone."""
    found: dict[str, Any] = {"samples": sum(map(len, kept))}
    for place, name in ((2, "mean log-probability"), (3, "confidence of 20 alternatives")):
        overall, within = [], []
        for samples in kept:
            rows = np.array(samples, dtype=float)
            if 0 < rows[:, 1].mean() < 1:
                overall.append(auroc(rows[:, 1], rows[:, place]))
            of = [rows[rows[:, 0] == number] for number in np.unique(rows[:, 0])]
            within += [auroc(one[:, 1], one[:, place]) for one in of if 0 < one[:, 1].mean() < 1]
        found[name] = {"by_seed": overall, "within_a_problem": as_dict(np.array(within)) if len(within) > 1 else None}
    return found


def as_dict(values: np.ndarray) -> dict[str, float]:
    """Of shares."""
    from burnish.core.statistics import interval

    return bounds(interval(values, scale="logit"))


def paired(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    from burnish.core.statistics import paired_interval

    return bounds(paired_interval(first, second))


def bounds(found: Any) -> dict[str, float]:
    return {"mean": found.value, "low": found.low, "high": found.high}


# -- tables ----------------------------------------------------------------------------------------------------------

ORDER = "strategy | model | accuracy (95 %): | costs as many samples: | vote of so many: | strategy less vote (95 %):"


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    made = {"votes": votes_table(results), "loops": loops_table(results["prices"])}
    for number, (title, arms) in enumerate(results["prices"].items()):
        ending = "" if number == 0 else "-dear"
        for page, wanted in (("gsa", ("best", "gsa")), ("rsa", ("rsa",))):
            header = ORDER.replace("costs as many samples", f"costs as many samples, where {title}")
            rows = [line(row, arm) for arm in arms for row in arms[arm] if row["strategy"].startswith(wanted)]
            made[f"{page}{ending}"] = experiment.table(header, rows)
    if "routing" in results:
        made["routing"] = routing_table(results["routing"])
    if "auroc" in results:
        made["auroc"] = auroc_table(results["auroc"])
    return made


def short(strategy: str) -> str:
    """Without the settings that are as they always are."""
    shown = re.sub(r",(answer=majority|early=0|temperature=0\.7|update=replace)\b", "", strategy)
    return f"`{shown}`"


def line(row: dict[str, Any], arm: str) -> list[str]:
    more = "more than all, " if row["dearer_than_all"] else ""
    return [
        short(row["strategy"]),
        arm,
        experiment.cell(row["accuracy"]),
        f"{more}{row['samples']:.1f}",
        f"{row['vote']['mean']:.3f}",
        experiment.cell(row["difference"], "+.3f"),
    ]


def votes_table(results: dict[str, Any]) -> str:
    votes = results["votes"]
    numbers = [one["samples"] for one in next(iter(votes.values()))]
    header = " | ".join(["model", "trainings:", "problems:", *(f"vote of {number}:" for number in numbers)])
    rows = (
        [arm, str(len(results["seeds"][arm])), str(results["problems"][arm]), *(f"{one['mean']:.3f}" for one in row)]
        for arm, row in votes.items()
    )
    return experiment.table(header, rows)


def routing_table(prices: dict[str, list[dict[str, Any]]]) -> str:
    columns = zip(*prices.values(), strict=True)
    header = " | ".join(
        ["routed", "accuracy (95 %):", "less RSA of the large model (95 %):"]
        + [f"saved, {title}:" for title in prices]
        + ["second passes, share of the cost:"]
    )
    rows = [
        [
            short(ones[0]["strategy"]),
            experiment.cell(ones[0]["accuracy"]),
            experiment.cell(ones[0]["difference"], "+.3f"),
            *(f"{one['saved']:.0%}" for one in ones),
            f"{ones[0]['overhead']:.1%}",
        ]
        for ones in columns
    ]
    return experiment.table(header, rows)


def loops_table(prices: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    rows = [
        [short(row["strategy"]), arm, " to ".join(f"{one:.3f}" for one in row["loops"])]
        for arm, found in next(iter(prices.values())).items()
        for row in found
        if row["strategy"].startswith("rsa")
    ]
    return experiment.table("strategy | model | mean accuracy of the population, loop by loop", rows)


def auroc_table(found: dict[str, Any]) -> str:
    rows = [
        [name, ", ".join(f"{value:.2f}" for value in one["by_seed"]), experiment.cell(one["within_a_problem"], ".2f")]
        for name, one in found.items()
        if isinstance(one, dict) and one["within_a_problem"]
    ]
    return experiment.table("score | AUROC over all samples, by seed: | among the samples of one problem (95 %):", rows)


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument(
        "--work", type=Path, required=True, help="models, runs and what has been measured are kept here"
    )
    command.add_argument("--only", default="", help="measure what begins so, such as '0, plain', and write no results")
    command.add_argument("--so-far", action="store_true", help="write results of the parts that are finished")
    command.add_argument("--minutes", type=float, default=1e9, help="stop before the next measurement after so long")
    options = command.read()
    os.environ |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    bench = Bench(options.work, smoke=options.smoke)
    names = [name for name in bench.names() if name.startswith(options.only)]
    done = options.so_far or bench.run(lambda: names, bench.measure, options.minutes)
    if done and not options.only and bench.finished("aggregating"):
        experiment.record(options.out, __doc__, summary(bench))
        for made in tables(json.loads(options.out.read_text())).values():
            print(made, end="\n\n")


if __name__ == "__main__":
    main()
