"""Over two real endpoints, does a plan by difficulty answer more questions rightly in time than asking both, or one?

    python benchmarks/serve_endpoints.py --work runs/serve-endpoints --minutes 20      # again, until all is done

For each seed two models (0.90 and 0.19 million parameters) are trained from random weights on chains of three to five
steps (the nodes `first` and `single` of `recipes/tiny_reasoner.yaml`), `burnish reason serve --local` serves them, and
both are asked 200 validation chains and 300 test chains, none of which was trained on, at temperature 0. What they
answered and the tokens that their servers counted are kept. Then the real `EnsembleSession` is run on a virtual clock,
on which a call takes 10 ms (large) or 2 ms (small) for each token that its answer has, so that no other load of the
machine is measured. Questions arrive as a Poisson process at 1.5 times what the large model can serve by itself; an
answer is due after twice what the large model takes for a question of median length.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import selectors
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import yaml

from burnish.core.statistics import paired_interval
from burnish.serve.endpoint_ensemble import Answered, EndpointSchemble, EnsembleSession
from burnish.serve.ensemble import Query, Schemble, Static
from burnish.serve.members import EnsembleMember, MemberUsage, ask_member

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "tiny_reasoner.yaml"
SHAPES = {"small": ROOT / "examples" / "reasoner_small.json", "large": ROOT / "examples" / "reasoner.json"}
SIZES = tuple(SHAPES)
TOKEN = {"small": 0.002, "large": 0.010}
"""Seconds of a token of an answer, on the virtual clock."""
SEEDS = range(1) if experiment.SMOKE else range(3)
VALIDATION, TEST = (12, 12) if experiment.SMOKE else (200, 300)
LOAD, PATIENCE = 1.5, 2.0
FIELDS = {"max_tokens": 80, "temperature": 0}
AT_ONCE = 32
"""Questions that a server is asked at a time, while answers are recorded."""
SCHEMBLE, ONE_BIN, ALWAYS = "Schemble", "Schemble, one bin", "both, always"
POLICIES = (ALWAYS, "both, where in time", "small alone", "large alone", ONE_BIN, SCHEMBLE)


class Bench(experiment.Kept):
    """What is measured, by name: "seed, train, size", "seed, answers" and "seed, policies"."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.work = work

    def names(self) -> list[str]:
        return [
            f"{seed}, {what}"
            for seed in SEEDS
            for what in (*(f"train, {size}" for size in SIZES), "answers", "policies")
        ]

    def measure(self, name: str) -> dict[str, Any]:
        seed, what, *size = name.split(", ")
        if what == "train":
            return self.train(int(seed), size[0])
        return self.answers(int(seed)) if what == "answers" else self.policies(int(seed))

    def nodes(self, seed: int, size: str) -> Path:
        return self.work / f"{size}-{seed}" / "nodes"

    def train(self, seed: int, size: str) -> dict[str, Any]:
        start, run = self.work / f"{size}-{seed}-start", self.nodes(seed, size).parent
        if not start.is_dir():
            burnish(
                *("init", SHAPES[size], "--tokenizer", "bpe:400", "--data", ROOT / "src/burnish/reason/prompts"),
                *("--chat-template", ROOT / "examples/reasoner.jinja", "--seed", seed, "-o", start),
            )
        recipe = yaml.safe_load(RECIPE.read_text())
        recipe["nodes"] = [node for node in recipe["nodes"] if node["name"] in ("first", "single")]
        for node in recipe["nodes"]:
            node["seed"] = node.get("seed", 0) + 100 * seed
        if experiment.SMOKE:
            recipe["nodes"][0]["number"], recipe["nodes"][1]["steps"] = 200, 4
        mine = self.work / f"{size}-{seed}.yaml"
        mine.write_text(yaml.safe_dump(recipe, sort_keys=False))
        burnish("run", mine, "--start", start, "-o", run)
        return {"recipe": RECIPE.name}

    def chains(self, seed: int) -> list[dict[str, Any]]:
        """Validation and test chains, in no training data of that seed."""
        from burnish.data.chain import Chains, chain_rows
        from burnish.data.draws import questions_of

        kind = yaml.safe_load(RECIPE.read_text())["nodes"][0]["kind"]
        seen = questions_of(self.nodes(seed, "large") / "first" / "rows.jsonl")
        kinds = Chains(**kind | {"steps": tuple(kind["steps"])})
        return list(chain_rows(kinds, VALIDATION + TEST, seed=2_000_000 + seed, apart_from=seen, distinct=True))

    def answers(self, seed: int) -> dict[str, Any]:
        """What both models answer to every question over HTTP, and the tokens that their servers count."""
        questions = [row["question"] for row in self.chains(seed)]
        found: dict[str, Any] = {"validation": experiment.digest("".join(questions[:VALIDATION]))}
        found["test"] = experiment.digest("".join(questions[VALIDATION:]))
        for size in SIZES:
            with serving(self.nodes(seed, size) / "single", size) as member:
                found[size] = asyncio.run(recorded(member, questions))
        return found

    def policies(self, seed: int) -> dict[str, Any]:
        from burnish.verify.chains import ChainAnswer

        rows, reader, said = self.chains(seed), ChainAnswer(), self.read(f"{seed}, answers")
        questions, golds = [row["question"] for row in rows], [str(row["answer"]) for row in rows]
        texts = [[text for text, _, _ in said[size][:VALIDATION]] for size in SIZES]
        takes = float(np.median([TOKEN["large"] * tokens for _, _, tokens in said["large"][:VALIDATION]]))
        arrivals = np.cumsum(np.random.default_rng(7000 + seed).exponential(takes / LOAD, size=TEST))
        book = {
            size: {question: (text, TOKEN[size] * tokens, prompt, tokens) for question, (text, prompt, tokens) in rows}
            for size in SIZES
            for rows in [list(zip(questions, said[size], strict=True))]
        }
        found: dict[str, Any] = {}
        for name in POLICIES:
            members = [EnsembleMember("http://127.0.0.1:1/v1", size, fields=FIELDS) for size in SIZES]
            bins = 1 if name == ONE_BIN else 4
            ensemble = EndpointSchemble(members, reader=reader, num_bins=bins)
            for place, size in enumerate(SIZES):
                for question in questions[:VALIDATION]:
                    ensemble.took(place, book[size][question][1])
            ensemble.fit_texts(questions[:VALIDATION], texts, golds[:VALIDATION])
            if not name.startswith(SCHEMBLE):
                ensemble.planner = Always(ensemble.planner, name)
            made = virtually(ensemble, book, questions[VALIDATION:], arrivals, arrivals + PATIENCE * takes)
            right = [
                one.answer is not None and reader.equivalent(one.answer, gold)
                for one, gold in zip(made, golds[VALIDATION:], strict=True)
            ]
            found[name] = {"missed": float(np.mean([one.is_missed for one in made])), "right": float(np.mean(right))}
            found[name] |= {what: [getattr(one, what) for one in ensemble.usage] for what in USED}
            if name == SCHEMBLE:
                found["rewards"], found["weights"] = ensemble.planner.rewards.tolist(), ensemble.weights.tolist()
        tests = (questions[VALIDATION:], golds[VALIDATION:])
        alone = {
            size: float(np.mean([reader.extract(book[size][one][0]) == gold for one, gold in zip(*tests, strict=True)]))
            for size in SIZES
        }
        return {"takes": takes, "alone": alone} | found


USED = ("calls", "cancelled", "completion_tokens")


class Always(Schemble):
    """A planner that is none: the same members for every question; times and bins are those of the real one."""

    def __init__(self, planner: Schemble, name: str) -> None:
        self.__dict__.update(planner.__dict__)
        self.waits = name == ALWAYS
        self.subset = {"small alone": 1, "large alone": 2}.get(name, 3)

    def choose(self, queries: Sequence[Query], available: Sequence[float]) -> list[int]:
        if self.waits:
            return [self.subset for _ in queries]
        return Static(self.times, self.subset).choose(queries, available)


def burnish(*words: object) -> None:
    """A command, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "burnish", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"burnish {words[0]}: {done.stderr[-2000:]}")


# -- real servers ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(directory: Path, size: str) -> Iterator[EnsembleMember]:
    """A checkpoint behind `burnish reason serve --local`, on a port of its own."""
    command = [sys.executable, "-m", "burnish", "reason", "serve", "--local", str(directory), "--name", size]
    server = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        if not (found := re.search(r"http://\S+", said)):
            sys.exit(f"no server: {said}")
        yield EnsembleMember(found.group().rstrip("/").removesuffix("/v1") + "/v1", size, fields=FIELDS)
    finally:
        server.terminate()
        server.wait()


async def recorded(member: EnsembleMember, questions: Sequence[str]) -> list[tuple[str, int, int]]:
    """Text, tokens of the prompt and tokens of the answer for every question."""
    import aiohttp

    places = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession() as session:

        async def one(question: str) -> tuple[str, int, int]:
            async with places:
                used = MemberUsage()
                text = await ask_member(session, member, question, used)
                if used.unknown:
                    sys.exit(f"{member.called} does not count its tokens")
                return text, used.prompt_tokens, used.completion_tokens

        return list(await asyncio.gather(*map(one, questions)))


# -- a virtual clock ---------------------------------------------------------------------------------------------------


class Jump(selectors.DefaultSelector):
    """Does not wait: the clock of its loop goes on by what it would have waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which nothing takes time but what sleeps."""

    def __init__(self) -> None:
        self._jump = Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


class Replayed(EnsembleSession):
    """A session whose members give their recorded answers after the time that those take."""

    book: dict[str, dict[str, tuple[str, float, int, int]]]

    async def _call(self, member: int, question: str) -> str:
        used, size = self.ensemble.usage[member], self.ensemble.members[member].model
        text, seconds, prompt, completion = self.book[size][question]
        used.calls += 1
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            used.cancelled += 1
            raise
        used.add({"prompt_tokens": prompt, "completion_tokens": completion})
        return text


def virtually(
    ensemble: EndpointSchemble, book: Any, questions: Sequence[str], arrivals: Any, deadlines: Any
) -> list[Any]:
    async def run() -> list[Answered]:
        session = Replayed(ensemble, None)
        session.book = book

        async def one(question: str, arrival: float, deadline: float) -> Answered:
            await asyncio.sleep(arrival - session.now)
            return await session.ask(question, deadline - session.now)

        return list(await asyncio.gather(*map(one, questions, arrivals.tolist(), deadlines.tolist())))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(run())


# -- what is quoted ----------------------------------------------------------------------------------------------------


def summed(bench: Bench) -> dict[str, Any]:
    seeds = [bench.read(f"{seed}, policies") for seed in SEEDS]
    policies = {}
    for name in POLICIES:
        rows = [one[name] for one in seeds]
        gain = paired_interval(
            np.array([one[SCHEMBLE]["right"] for one in seeds]), np.array([row["right"] for row in rows])
        )
        policies[name] = {
            "missed": experiment.over_seeds([row["missed"] for row in rows]),
            "right": experiment.over_seeds([row["right"] for row in rows]),
            "schemble_above": [gain.value, gain.low, gain.high],
            **{what: np.mean([row[what] for row in rows], 0).tolist() for what in USED},
        }
    return {"seeds": seeds, "policies": policies, "questions": TEST}


def tables(results: dict[str, Any]) -> dict[str, str]:
    rows = []
    for name, one in results["policies"].items():
        value, low, high = (100 * number for number in one["schemble_above"])
        rows.append(
            [
                name,
                experiment.cell({key: 100 * one["missed"][key] for key in ("mean", "low", "high")}, ".1f"),
                experiment.cell({key: 100 * one["right"][key] for key in ("mean", "low", "high")}, ".1f"),
                "" if name == SCHEMBLE else f"{value:+.1f} ({low:+.1f} to {high:+.1f})",
                *(" / ".join(f"{number:,.0f}" for number in one[what]) for what in USED),
            ]
        )
    header = (
        "policy | missed, %: | right in time, %: | Schemble above it: | calls, small / large: | cancelled: | "
        "tokens of answers:"
    )
    return {"policies": experiment.table(header, rows)}


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    options = command.read()
    bench = Bench(Path(options.work))

    def content() -> dict[str, Any]:
        answers = [bench.read(f"{seed}, answers") for seed in SEEDS]
        slices = {"tuning": [one["validation"] for one in answers], "reporting": [one["test"] for one in answers]}
        return summed(bench) | {"slices": slices}

    experiment.answer(bench, options, __doc__, content, tables, note="virtual time")


if __name__ == "__main__":
    main()
