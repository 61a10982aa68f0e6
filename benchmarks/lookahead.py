"""How many tokens does a forward pass give, when what follows is looked up in what was said, and at what cost?

    python benchmarks/lookahead.py --model models/smollm2 --data DIR --work WORK [--part trees] [--minutes 20]

Greedy answers of up to 200 tokens in float32 to 16 prompts whose answers copy (6 edits of HumanEval programs, 4
summaries that quote and 3 corrections of WikiText-2 test, 3 questions about a drawn table) and to 8 chat questions;
DIR has humaneval.jsonl.gz, wikitext2_test.txt.gz and wikitext2_valid.txt.gz. A proposer is then asked before every
pass, and as many of its tokens count as the answer has: a lossless verification, replayed. Beside it: transformers'
prompt lookup (its class), vLLM's n-gram rule (the earliest longest match of 2 to 5 tokens). Weights of the tree were
chosen on eight other prompts, of other programs and of WikiText-2 valid.

answers: what the model says, a token a pass.
trees: the first 64 tokens by `burnish.generate` with real trees, and of 18 prompts more: whether they are equal.
bfloat16: texts of a prompt alone, with trees, and, as a control, of all prompts in one batch without trees; how near
the float32 logits of the two tokens are where one parts from the text alone. It needs no answers, and adds to the
results by itself.
second: from how many tokens on a second identical request takes less than half of the first one's passes, that over
the prompt counted in both; the first proposes too. The first 64 tokens, of all prompts in one batch; it needs no
answers, and adds to the results by itself.
record: writes all other results, with as many trees as were made.
replay: tokens per pass of every proposer, of a second identical request, and with the answers of all others known.
cost: processor seconds of one thread for a step and for inserting a prompt of 4,096 tokens, and bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from experiment import SMOKE, Kept, cell, ratio, table
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from burnish.core.checkpoint import load
from burnish.core.statistics import interval
from burnish.generate import generate
from burnish.serve.speculate import Draft, Lookahead, Trie

NUM_TOKENS, TREE_TOKENS = (24, 24) if SMOKE else (200, 64)
KINDS = {"code": 6, "quote": 4, "retrieve": 3, "fix": 3, "chat": 8}
COPY = ("code", "quote", "retrieve", "fix")
CHAT = (
    "What is the difference between weather and climate?",
    "Give me three tips for learning to play the guitar.",
    "Why do leaves change colour in autumn?",
    "Write a short story about a lighthouse keeper.",
    "How does a refrigerator work?",
    "What should I pack for a week in the mountains?",
    "Explain what a prime number is to a child.",
    "Who was Marie Curie?",
)
TUNING_CHAT = ("How do I boil an egg?", "What is a black hole?")
EXTRA = 2 if SMOKE else 18
HALF = range(2) if SMOKE else (*range(16), *range(16, 24, 2))
"""Prompts of texts in bfloat16: all that are copied from, and every other chat."""
HALF_TOKENS = 8 if SMOKE else 32
SECOND_TOKENS = 8 if SMOKE else 64
SECOND_CHAIN = 8
"""Tokens of a chain, as `burnish serve up` proposes."""
LENGTHS = (2, 4, 8) if SMOKE else (2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64)
Prompt = dict[str, str]


# -- prompts -----------------------------------------------------------------------------------------------------------


def programs(data: Path) -> list[dict[str, str]]:
    with gzip.open(data / "humaneval.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def paragraphs(data: Path, part: str) -> list[str]:
    with gzip.open(data / f"wikitext2_{part}.txt.gz", "rt", encoding="utf-8") as lines:
        long = [line for line in lines if 500 < len(line) < 1100]
    for joined, apart in ((",", " ,"), (".", " ."), ("-", " @-@ "), (".", " @.@ "), (",", " @,@ "), ("", "<unk>")):
        long = [line.replace(apart, joined) for line in long]
    return [" ".join(line.split()) for line in long]


def edit(row: dict[str, str], new: str) -> Prompt:
    text = f"Rename the function {row['entry_point']} to {new} in this program and give me the whole program:\n\n"
    return {"kind": "code", "text": f"{text}```python\n{row['prompt']}{row['canonical_solution']}```"}


def quoting(paragraph: str) -> Prompt:
    text = "Quote the first two sentences of the text word by word, then summarize it in one sentence.\n\n"
    return {"kind": "quote", "text": text + paragraph}


def correction(paragraph: str, draw: random.Random) -> Prompt:
    words = paragraph[:600].rsplit(" ", 1)[0].split()
    for place in draw.sample(range(len(words)), len(words) // 12):
        letters = list(words[place])
        at = draw.randrange(len(letters))
        letters[at : at + 2] = letters[at : at + 2][::-1] if len(letters) > at + 1 else letters[at] * 2
        words[place] = "".join(letters)
    return {"kind": "fix", "text": f"Correct the spelling in this text and give the whole text:\n\n{' '.join(words)}"}


def retrieval(draw: random.Random) -> Prompt:
    names = ["Ashford", "Brindle", "Calder", "Dunmore", "Elstow", "Farley", "Garston", "Hexham"]
    rows = [
        f"{name}: opened {draw.randrange(1850, 1990)}, {draw.randrange(2, 9)} platforms, "
        f"{draw.randrange(100, 999)} thousand passengers a year, rebuilt {draw.randrange(1990, 2020)}"
        for name in names
    ]
    wanted = draw.sample(names, 3)
    lines = "\n".join(rows)
    text = f"Railway stations:\n{lines}\n\nCopy the lines of {wanted[0]}, {wanted[1]} and {wanted[2]} exactly."
    return {"kind": "retrieve", "text": text}


def reporting(data: Path) -> list[Prompt]:
    draw, rows, texts = random.Random(0), programs(data), paragraphs(data, "test")
    found = [edit(row, f"solve_{number}") for number, row in enumerate(rows[10:130:20])]
    found += [quoting(text) for text in texts[10:90:20]]
    found += [retrieval(draw) for _ in range(3)]
    found += [correction(text, draw) for text in texts[100:160:20]]
    return found + [{"kind": "chat", "text": text} for text in CHAT]


def tuning(data: Path) -> list[Prompt]:
    draw, rows, texts = random.Random(1), programs(data), paragraphs(data, "valid")
    found = [edit(rows[5], "answer"), edit(rows[140], "run"), quoting(texts[3]), quoting(texts[30])]
    found += [retrieval(draw), correction(texts[60], draw)]
    return found + [{"kind": "chat", "text": text} for text in TUNING_CHAT]


def extra(data: Path) -> list[Prompt]:
    rows = programs(data)[1 : 1 + 8 * EXTRA : 8]
    return [{"kind": "extra", "text": f"Complete this function:\n\n{row['prompt']}"} for row in rows]


# -- the model ---------------------------------------------------------------------------------------------------------


class Asked:
    """The model, the prompts as its tokens, and what was measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.kept, self.model_at, data = Kept(arguments.work), arguments.model, arguments.data
        self.sets = {"reporting": reporting(data), "tuning": tuning(data), "extra": extra(data)}
        if SMOKE:
            self.sets["reporting"] = self.sets["reporting"][:2] + self.sets["reporting"][-1:]
            self.sets["tuning"] = self.sets["tuning"][:1]

    @cache  # noqa: B019 - one for each process
    def model(self, dtype: str = "float32") -> Any:
        return load(self.model_at, dtype=getattr(torch, dtype), device="cpu")

    def tokens(self, prompt: Prompt) -> list[int]:
        chat = [{"role": "user", "content": prompt["text"]}]
        return list(
            self.model().tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        )

    def say(
        self, prompt: list[int], memory: Lookahead | None = None, dtype: str = "float32", num: int = 0
    ) -> list[int]:
        model = self.model(dtype)
        options: dict[str, Any] = {"max_new_tokens": num or NUM_TOKENS, "temperature": 0, "speculate": memory}
        return generate(model.module.eval(), model.tokenizer, [prompt], **options)[0].tokens

    def answer(self, name: str) -> dict[str, Any]:
        """Of a prompt, which `name` says: `answer reporting 3`."""
        _, part, number = name.split()
        prompt = self.sets[part][int(number)]
        tokens = self.tokens(prompt)
        said = self.say(tokens, num=TREE_TOKENS if part == "extra" else 0)
        return {"kind": prompt["kind"], "prompt": tokens, "answer": said}

    def answers(self, part: str) -> list[dict[str, Any]]:
        return [self.kept.read(f"answer {part} {number}") for number in range(len(self.sets[part]))]

    def tree(self, name: str) -> dict[str, Any]:
        """The same answer by trees: `tree reporting 3`."""
        _, part, number = name.split()
        known = self.kept.read(f"answer {part} {number}")
        memory = Lookahead()
        said = self.say(known["prompt"], memory, num=TREE_TOKENS)
        return {
            "equal": said == known["answer"][:TREE_TOKENS],
            "tokens": memory.counts.tokens,
            "passes": memory.counts.drafts,
        }

    @property
    def halves(self) -> dict[str, list[int]]:
        """Prompts of texts in bfloat16, by the name of their measurement."""
        return {f"bfloat16 {number}": self.tokens(self.sets["reporting"][number]) for number in HALF}

    def half(self, name: str) -> dict[str, Any]:
        """In bfloat16, alone and with trees: `bfloat16 3`; `bfloat16 together`: those of all prompts in one batch."""
        prompts = self.halves
        if name == "bfloat16 together":
            model = self.model("bfloat16")
            options: dict[str, Any] = {"max_new_tokens": HALF_TOKENS, "temperature": 0}
            return {
                "texts": [
                    one.tokens for one in generate(model.module, model.tokenizer, list(prompts.values()), **options)
                ]
            }
        alone, trees = (self.say(prompts[name], memory, "bfloat16", HALF_TOKENS) for memory in (None, Lookahead()))
        return {"alone": alone, "trees": trees}

    def beginnings(self, name: str) -> dict[str, Any]:
        """The first tokens of all answers: `second beginnings`."""
        model, prompts = self.model(), self.sets["reporting"]
        tokens = [self.tokens(prompt) for prompt in prompts]
        said = generate(model.module, model.tokenizer, tokens, max_new_tokens=SECOND_TOKENS, temperature=0)
        return {
            "known": [
                {"kind": prompt["kind"], "prompt": own, "answer": one.tokens}
                for prompt, own, one in zip(prompts, tokens, said, strict=True)
            ]
        }

    def partings(self) -> list[dict[str, Any]]:
        """Of every prompt where its text with trees and its text in a batch part from its text alone."""
        together, found = self.kept.read("bfloat16 together")["texts"], []
        for (name, prompt), in_batch in zip(self.halves.items(), together, strict=True):
            texts = self.kept.read(name)
            sides = {"trees": texts["trees"], "batch": in_batch}
            found.append({side: self.parting(prompt, texts["alone"], other) for side, other in sides.items()})
        return found

    def parting(self, prompt: list[int], one: list[int], other: list[int]) -> dict[str, Any]:
        """Where two texts part, the float32 logits of their tokens there."""
        if one == other:
            return {"equal": True}
        at = next(place for place, (a, b) in enumerate(zip([*one, -1], [*other, -1], strict=False)) if a != b)
        with torch.inference_mode():
            logits = self.model().module(torch.tensor([[*prompt, *one[:at]]]), logits_to_keep=1).logits[0, -1]
        gap = float((logits[one[at]] - logits[other[at]]).abs())
        top = set(logits.topk(2).indices.tolist()) == {one[at], other[at]}
        return {"equal": False, "at": at, "gap": gap, "largest": float(logits.abs().max()), "are the top two": top}


# -- proposers ---------------------------------------------------------------------------------------------------------


class Chain:
    """A proposer of chains: what follows a text."""

    def __init__(self, follow: Callable[[list[int]], list[int]]) -> None:
        self.follow = follow

    def begin(self, prompt: list[int]) -> Chain:
        self.text = list(prompt)
        return self

    def extend(self, tokens: list[int]) -> None:
        self.text += tokens

    def draft(self) -> Draft:
        tokens = self.follow(self.text)
        return Draft(tokens, list(range(-1, len(tokens) - 1)))

    def end(self) -> None:
        """Remembers nothing."""


class Chained:
    """The chain of a memory."""

    def __init__(self, **options: Any) -> None:
        self.memory = Lookahead(**options)

    def begin(self, prompt: list[int]) -> Any:
        session = self.memory.begin(prompt)

        def draft() -> Draft:
            tokens = session.chain()
            return Draft(tokens, list(range(-1, len(tokens) - 1)))

        return argparse.Namespace(extend=session.extend, draft=draft, end=session.end)


def ngram(text: list[int], k: int) -> list[int]:
    """What follows the earliest of the longest matches of the last 5 to 2 tokens."""
    array = np.asarray(text)
    for size in (5, 4, 3, 2):
        if len(array) <= size:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(array[:-1], size)
        found = np.flatnonzero((windows == array[-size:]).all(-1))
        if len(found):
            return array[found[0] + size : found[0] + size + k].tolist()
    return []


def lookup(text: list[int], k: int) -> list[int]:
    """As transformers' own class looks it up."""
    generator = PromptLookupCandidateGenerator(num_output_tokens=k, max_length=1 << 20)
    known: Any = torch.tensor([text])
    return generator.get_candidates(known)[0][0, len(text) :].tolist()


PROPOSERS: dict[str, Callable[[], Any]] = {
    "vLLM n-gram 2-5, k = 5": lambda: Chain(lambda text: ngram(text, 5)),
    "vLLM n-gram 2-5, k = 12": lambda: Chain(lambda text: ngram(text, 12)),
    "prompt lookup, k = 5": lambda: Chain(lambda text: lookup(text, 5)),
    "prompt lookup, k = 12": lambda: Chain(lambda text: lookup(text, 12)),
    "trie chain, k = 5": lambda: Chained(length=5),
    "trie chain, k = 12": lambda: Chained(length=12),
    "trie tree, 64 tokens": lambda: Lookahead(),
}


def follow(proposer: Any, prompt: list[int], answer: Sequence[int]) -> tuple[int, int]:
    """Tokens after the first, and passes that they take."""
    session = proposer.begin(prompt)
    session.extend(list(answer[:1]))
    done, passes = 1, 0
    while done < len(answer):
        draft = session.draft()
        passes += 1
        at, start = -1, done
        ways = {
            (parent, token): place
            for place, (token, parent) in reversed(list(enumerate(zip(draft.tokens, draft.parents, strict=True))))
        }
        while done < len(answer):
            at = ways.get((at, answer[done]), -2)
            done += 1
            if at == -2:
                break
        session.extend(list(answer[start:done]))
    session.end()
    return len(answer) - 1, passes


def replay(known: list[dict[str, Any]]) -> dict[str, Any]:
    """(tokens, passes) of every prompt for every proposer, alone, repeated, and with all other answers known."""
    found: dict[str, Any] = {"kinds": [one["kind"] for one in known], "alone": {}, "repeated": {}, "others known": {}}
    for name, make in PROPOSERS.items():
        found["alone"][name] = [follow(make(), one["prompt"], one["answer"]) for one in known]
        if "trie" not in name:
            continue
        again, after = [], []
        for place, one in enumerate(known):
            twice = make()
            follow(twice, one["prompt"], one["answer"])
            again.append(follow(twice, one["prompt"], one["answer"]))
            others = make()
            for other in known[:place] + known[place + 1 :]:
                _know(others, other)
            after.append(follow(others, one["prompt"], one["answer"]))
        found["repeated"][name], found["others known"][name] = again, after
    return found


def second(known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """(first, second) passes of every prompt whose answer has so many tokens, cut to them; the prompt's is counted."""
    found = []
    for length in LENGTHS:
        for one in known:
            if len(one["answer"]) >= length:
                twice = Chained(length=SECOND_CHAIN)
                passes = [1 + follow(twice, one["prompt"], one["answer"][:length])[1] for _ in range(2)]
                found.append({"length": length, "copies": one["kind"] in COPY, "passes": passes})
    return found


def _know(proposer: Any, one: dict[str, Any]) -> None:
    """Has it remember an answer."""
    session = proposer.begin(one["prompt"])
    session.extend(one["answer"])
    session.end()


def cost(known: list[dict[str, Any]]) -> dict[str, Any]:
    """Processor seconds: of a step, and of 4,096 tokens; nothing else is measured in them."""
    text = [token for one in known for token in [*one["prompt"], *one["answer"]]][:4096]
    found: dict[str, Any] = {"tokens": len(text)}
    for depth in (13, 16):
        seconds, trie = [], Trie(depth)
        for _ in range(9):
            trie = Trie(depth)
            started = time.process_time()
            trie.append(text)
            seconds.append(time.process_time() - started)
        pieces = {tuple(text[at : at + size]) for at in range(len(text)) for size in range(1, depth + 1)}
        counts = {"nodes": trie.num_nodes, "pieces": len(pieces), "bytes": trie.nbytes}
        found[f"insert {depth}"] = counts | {"seconds": seconds}
    for name, make in (("chain", lambda: Chained(length=12)), ("tree", Lookahead)):
        steps = []
        for _ in range(5):
            memory = make()
            for one in known:
                _know(memory, one)
            spent = passes = 0.0
            for one in known:
                session = memory.begin(one["prompt"])
                started = time.process_time()
                passes += _walk(session, one["answer"])
                spent += time.process_time() - started
            steps.append(spent / passes)
        found[f"step {name}"] = steps
    return found


def _walk(session: Any, answer: list[int]) -> int:
    """Steps of three tokens, which is what a pass gives: a draft, and what came."""
    session.extend(answer[:1])
    for start in range(1, len(answer), 3):
        session.draft()
        session.extend(answer[start : start + 3])
    return len(range(1, len(answer), 3))


# -- the record --------------------------------------------------------------------------------------------------------


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--data", type=Path, required=True)
    parts = ("bfloat16", "second", "answers", "trees", "record")
    command.add_argument("--part", choices=parts, help="end with it; trees need the answers")
    arguments = command.read()
    asked = Asked(arguments)
    every = [f"{part} {number}" for part, prompts in asked.sets.items() for number in range(len(prompts))]
    work: dict[str, tuple[list[str], Callable[[str], dict[str, Any]]]] = {
        "bfloat16": ([*asked.halves, "bfloat16 together"], asked.half),
        "second": (["second beginnings"], asked.beginnings),
        "answers": ([f"answer {name}" for name in every], asked.answer),
        "trees": ([f"tree {name}" for name in every], asked.tree),
    }
    for part, (names, measure) in work.items():
        if arguments.part == "second" and part == "bfloat16":
            continue
        if arguments.part != "record" and not asked.kept.run(partial(list, names), measure, arguments.minutes):
            return
        if part == "bfloat16" and arguments.part != "record":
            with experiment.results(arguments.out) as known:
                facts = {"machine": experiment.machine(), "date": date.today().isoformat(), "tokens": HALF_TOKENS}
                known["bfloat16"] = facts | {"texts": asked.partings()}
        if part == "second" and arguments.part != "record":
            with experiment.results(arguments.out) as known:
                facts = {"machine": experiment.machine(), "date": date.today().isoformat(), "chain": SECOND_CHAIN}
                known["second"] = facts | {"answers": second(asked.kept.read("second beginnings")["known"])}
        if arguments.part == part:
            return
    trees = [name for name in work["trees"][0] if asked.kept.has(name)]
    known = asked.answers("reporting")
    content = {
        "slices": {
            part: [experiment.digest(prompt["text"]) for prompt in asked.sets[part]] for part in ("tuning", "reporting")
        },
        "lengths": [len(one["answer"]) for one in known],
        "replay": replay(known),
        "tuning": replay(asked.answers("tuning"))["alone"],
        "trees": {name: asked.kept.read(name) for name in trees},
        "cost": cost(known),
    }
    experiment.record(arguments.out, __doc__, content, note="CPU seconds of one thread")


def tables(results: dict[str, Any]) -> dict[str, str]:
    found, kinds = results["replay"], results["replay"]["kinds"]
    copies, chats = ([n for n, kind in enumerate(kinds) if (kind == "chat") == chat] for chat in (False, True))

    def rates(rows: list[Any], where: list[int]) -> np.ndarray[Any, Any]:
        return np.array([rows[n][0] / rows[n][1] for n in where])

    def row(name: str, rows: list[Any]) -> list[str]:
        by_kind = [f"{rates(rows, [n for n, one in enumerate(kinds) if one == kind]).mean():.2f}" for kind in COPY]
        return [name, f"{rates(rows, copies).mean():.2f}", *by_kind, f"{rates(rows, chats).mean():.2f}"]

    alone, again, others = found["alone"], found["repeated"], found["others known"]
    per_pass = [row(name, rows) for name, rows in alone.items()]
    per_pass += [row(f"{name}, the same prompt a second time", rows) for name, rows in again.items()]
    per_pass += [row(f"{name}, all other answers known", rows) for name, rows in others.items()]
    bars = (
        ("chain, k = 12, to prompt lookup", "≥ 0.98", alone["trie chain, k = 12"], alone["prompt lookup, k = 12"]),
        ("chain, k = 5, to prompt lookup", "≥ 0.98", alone["trie chain, k = 5"], alone["prompt lookup, k = 5"]),
        ("chain, k = 12, to n-gram", "≥ 1.05", alone["trie chain, k = 12"], alone["vLLM n-gram 2-5, k = 12"]),
        ("chain, k = 5, to n-gram", "≥ 1.05", alone["trie chain, k = 5"], alone["vLLM n-gram 2-5, k = 5"]),
        ("tree to prompt lookup, k = 12", "≥ 1.10", alone["trie tree, 64 tokens"], alone["prompt lookup, k = 12"]),
        (
            "second request, chain, to prompt lookup",
            "≥ 1.8",
            again["trie chain, k = 12"],
            alone["prompt lookup, k = 12"],
        ),
        ("others known, chain, to the chain alone", "≥ 1", others["trie chain, k = 12"], alone["trie chain, k = 12"]),
    )
    lines = [
        [name, bar, *(cell(ratio(rates(ours, where), rates(theirs, where)), ".2f") for where in (copies, chats))]
        for name, bar, ours, theirs in bars
    ]
    head = "proposer | copying | code | quotes | table | corrections | chat"
    return {
        "passes": table(head, per_pass),
        "bars": table("tokens per pass, ratio | goal | copying (95 %) | chat (95 %)", lines),
        "same": _same(results),
        "second": _second(results["second"]),
        "cost": _cost(results["cost"]),
    }


def _same(results: dict[str, Any]) -> str:
    trees = list(results["trees"].values())
    rows = [["float32, with trees", len(trees), sum(one["equal"] for one in trees), "-", "-", "-"]]
    halves = results["bfloat16"]["texts"] if results["bfloat16"] else []
    parts = {side: np.array([not one[side]["equal"] for one in halves], float) for side in ("trees", "batch")}
    for side, title in (("trees", "bfloat16, with trees"), ("batch", "bfloat16, in a batch of all, without trees")):
        if halves:
            parted = [one[side] for one in halves if not one[side]["equal"]]
            widest = max((one["gap"] / one["largest"] for one in parted), default=None)
            near = sum(one["are the top two"] for one in parted)
            more = cell(interval(parts["trees"] - parts["batch"]), "+.2f") if side == "trees" else "-"
            cells = [near, "-" if widest is None else f"{widest:.2%} of the largest logit", more]
            rows.append([title, len(halves), len(halves) - len(parted), *cells])
    head = "texts | number | equal to the text alone | of the others, part at the float32 top two | widest gap there "
    return table(f"{head}| share that parts, less that in a batch (95 %, paired)", rows)


def _second(found: dict[str, Any]) -> str:
    rows = []
    for length in sorted({one["length"] for one in found["answers"]}):
        cells: list[Any] = [length, 1 + math.ceil((length - 1) / (1 + found["chain"]))]
        for copies in (True, False):
            passes = [one["passes"] for one in found["answers"] if (one["length"], one["copies"]) == (length, copies)]
            if not passes:
                cells += ["-"] * 3
                continue
            cells += [f"{mean:.1f}" for mean in np.mean(passes, 0)]
            cells.append(f"{sum(2 * again < first for first, again in passes)} of {len(passes)}")
        rows.append(cells)
    head = (
        "tokens of the answer | least passes | copying: passes of the first request | of the second | second less than "
    )
    head += "half | chat: first | second | less than half"
    return table(head, rows)


def _cost(found: dict[str, Any]) -> str:
    rows = []
    for depth in (13, 16):
        one = found[f"insert {depth}"]
        what = f"{1e3 * float(np.median(one['seconds'])):.1f} ms"
        rows.append([f"{found['tokens']:,} tokens into a trie {depth} deep", what, "≤ 8 ms"])
        each = f"{one['bytes'] / one['pieces']:.1f} bytes ({one['bytes'] / one['nodes']:.1f} a stored node)"
        rows.append([f"for each of its {one['pieces']:,} pieces", each, "≤ 24 bytes"])
    for name in ("chain", "tree"):
        rows.append(
            [f"a step, {name}, update included", f"{1e6 * float(np.median(found[f'step {name}'])):.0f} µs", "≤ 30 µs"]
        )
    return table("what | processor time or memory | goal", rows)


if __name__ == "__main__":
    main()
