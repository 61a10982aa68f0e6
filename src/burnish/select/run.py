"""Data selection by the model itself: sample, verify, keep the shortest.

    s_1 .. s_k ~ p(. | x)        k samples of every problem x
    solve rate = right / k       difficulty = 1 - solve rate
    row        = x, argmin over right s_i of |s_i|

"InfiR: Crafting Effective Small Language Models and Multimodal Small Language Models in Reasoning", 2025,
arXiv:2502.11573, samples candidates and keeps what is verified; the rule of the shortest, and the share of problems
that are always solved, are ours. Samples follow from the seed and the problem alone, whatever shares their batch. What
is done lies on disk part by part, so that a run that was stopped goes on.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint import text_digest
from burnish.core.errors import DataError
from burnish.core.made_data import Data
from burnish.core.stage import Context
from burnish.core.store import Store
from burnish.generate import generate
from burnish.generate.problems import is_right, problems_of, prompt_of, question_of
from burnish.verify import Verifier, verifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.core.checkpoint import Model
    from burnish.select.stage import Select

PART = 64
"""Problems that are sampled and kept at once, and done again after a kill."""
BINS = 5
"""Of the histogram of solve rates between none and all."""
FILE = "problems.jsonl"


def run(settings: Select, model: Model, ctx: Context) -> Data:
    """The rows that are kept; the histogram of solve rates and what was kept go into the ledger.

    Raises:
        DataError: no problems, one that cannot be graded, or nothing is left to keep.
        SettingsError: a problem too long for the model.
        EngineError, MissingExtraError: the verifier cannot run here.
    """
    with verifier(settings.verifier) as grader:
        problems = problems_of(ctx.inputs.get("data"), grader)
        parts = _parts(settings, model, ctx, grader, problems)
    tried = list(_tried(parts))
    kept = [one for one in tried if _is_kept(settings, one)]
    ctx.ledger.table("difficulty", histogram(tried, settings.k))
    counts = counted(tried, kept)
    ctx.ledger.table("selection", [counts])
    ctx.progress.log(
        f"{counts['solved']:,} of {len(tried):,} problems were solved, {counts['rows']:,} answers to {len(kept):,} kept"
    )
    if not kept:
        raise DataError(_nothing(settings, tried), where="data", fix=_advice(tried))
    return Data(_rows(kept), about={"difficulty": histogram(tried, settings.k), "selection": counts})


def _parts(
    settings: Select, model: Model, ctx: Context, grader: Verifier, problems: Sequence[dict[str, Any]]
) -> list[Path]:
    """Files with what came of every problem; those that an earlier start has finished are passed over."""
    store = Store(ctx.work_dir / "samples")
    settled = {name: getattr(settings, name) for name in ("verifier", "k", "keep", "temperature", "max_new_tokens")}
    key = {"model": model.identity, "problems": text_digest(problems), "seed": settings.seed} | settled
    module: Any = model.module
    module = module.to(ctx.device).eval()
    found = []
    with ctx.progress.task("own answers", total=len(problems), unit="problems") as task:
        for start in range(0, len(problems), PART):
            part, name = problems[start : start + PART], f"part{start // PART:06d}"
            if store.find(name, key) is None:
                tried = _sampled(settings, module, model.tokenizer, grader, part)
                with store.writing(name, key) as directory:
                    lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in tried)
                    (directory / FILE).write_text("".join(lines), encoding="utf-8")
            found.append(store.directory / name / FILE)
            task.advance(len(part))
    return found


def _sampled(
    settings: Select,
    module: Any,
    tokenizer: PreTrainedTokenizerBase,
    grader: Verifier,
    problems: Sequence[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Of every problem how many samples were right, their tokens, and the shortest of them."""
    prompts = [prompt_of(tokenizer, grader, problem) for problem in problems]
    samples = generate(
        module,
        tokenizer,
        [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts],
        n=settings.k,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=[_chance(settings, "samples", problem["question"]).getrandbits(32) for problem in problems],
        batch_size=settings.batch_size,
    )
    for place, problem in enumerate(problems):
        own = samples[place * settings.k : (place + 1) * settings.k]
        right = [one for one in own if is_right(one, grader, problem)]
        shortest = sorted(
            {one.text: one for one in reversed(right)}.values(), key=lambda one: (len(one.tokens), one.text)
        )
        yield {
            "problem": problem,
            "chat": question_of(grader, problem),
            "right": len(right),
            "cut": sum(one.finish_reason == "length" for one in own),
            "tokens": [len(one.tokens) for one in own],
            "right_tokens": [len(one.tokens) for one in right],
            "answers": [{"text": one.text, "tokens": len(one.tokens)} for one in shortest[: settings.keep]],
        }


def _is_kept(settings: Select, one: Mapping[str, Any]) -> bool:
    """Solved, and where it always is, within the share of such problems."""
    if one["right"] < settings.k:
        return one["right"] > 0
    return _chance(settings, "easy", one["problem"]["question"]).random() < settings.easy


def histogram(tried: Iterable[Mapping[str, Any]], k: int) -> list[dict[str, Any]]:
    """How many problems have which solve rate: none, fifths between, all."""
    found: Counter[int] = Counter()
    for one in tried:
        right = one["right"]
        found[0 if right == 0 else BINS + 1 if right == k else 1 + (right - 1) * BINS // max(1, k - 1)] += 1
    names = ["never", *(f"up to {(place + 1) / BINS:.0%}" for place in range(BINS)), "always"]
    return [{"solved": name, "problems": found[place]} for place, name in enumerate(names)]


def counted(tried: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was sampled and what was kept of it, in numbers."""
    right = [tokens for one in tried for tokens in one["right_tokens"]]
    answers = [answer["tokens"] for one in kept for answer in one["answers"]]
    samples = sum(len(one["tokens"]) for one in tried)
    return {
        "problems": len(tried),
        "samples": samples,
        "right": len(right),
        "cut": sum(one["cut"] for one in tried),
        "solved": sum(one["right"] > 0 for one in tried),
        "kept": len(kept),
        "rows": len(answers),
        "tokens_right": sum(right) / len(right) if right else None,
        "tokens_kept": sum(answers) / len(answers) if answers else None,
    }


def _rows(kept: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in kept:
        rate = one["right"] / len(one["tokens"])
        for answer in one["answers"]:
            said = {"role": "assistant", "content": answer["text"]}
            facts = {"solve_rate": rate, "difficulty": 1 - rate, "tokens": answer["tokens"]}
            yield {"id": str(one["problem"].get("id", "")), "messages": [*one["chat"], said]} | facts


def _tried(parts: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in parts:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _nothing(settings: Select, tried: Sequence[Mapping[str, Any]]) -> str:
    solved = sum(one["right"] > 0 for one in tried)
    if solved:
        what = f"of {len(tried):,} problems {solved:,} are solved by every sample and no other at all"
        return f"{what}, and easy {settings.easy:g} keeps none of them"
    return f"no sample of {len(tried):,} problems is right, so there is nothing to learn from"


def _advice(tried: Sequence[Mapping[str, Any]]) -> str:
    if any(one["right"] for one in tried):
        return "use harder problems, or raise easy"
    cut = sum(one["cut"] for one in tried)
    if 2 * cut > sum(len(one["tokens"]) for one in tried):
        return "raise max_new_tokens: most samples were cut"
    return "use easier problems, more samples (k), or another verifier"


def _chance(settings: Select, *names: object) -> random.Random:
    """Chance that depends on the seed and on names, and on no order of events."""
    return random.Random(" ".join(map(str, ("select", settings.seed, *names))))
