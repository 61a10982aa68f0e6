"""What a quantized (or otherwise changed) model has unlearned, and pairs that teach it again.

    lost = problems that the original answers rightly and the model does not; gained = the reverse
    McNemar's exact test: could lost and gained be one coin?
    fault = first step of a lost solution behind which the original, going on k times, is right less often than `least`
    pair  = the original's right continuation before the fault, over the model's own

"Quantization Meets Reasoning: Exploring and Mitigating Degradation of Low-Bit LLMs in Mathematical Reasoning", 2025,
arXiv:2501.03035, and 2505.11574, where a judge model finds the steps; here the original itself does, or arithmetic.
Every text follows from the seed and its problem alone. What is done lies on disk part by part.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.core.checkpoint import Model, common_vocabulary, compute_dtype, load, text_digest
from burnish.core.errors import DataError, SettingsError
from burnish.core.made_data import Data
from burnish.core.stage import Context
from burnish.core.statistics import exact_share, mcnemar, paired_interval
from burnish.core.store import Store
from burnish.diagnose.locate import JUDGES, Ending
from burnish.diagnose.pairs import counted, paired
from burnish.generate import Sample, generate
from burnish.generate.problems import is_right, problems_of, prompt_of, question_of
from burnish.verify import Verifier, verifier

if TYPE_CHECKING:
    from burnish.diagnose.stage import Diagnose

PART = 64
"""Problems that are asked and kept at once, and done again after a kill."""
ABLE = 0.2
"""Share of problems that the original must answer rightly: below, there is nothing to bring back."""
FILE = "problems.jsonl"

Found = dict[str, Any]
"""A problem, what both models wrote to it, and where it was lost the fault."""


def run(settings: Diagnose, model: Model, ctx: Context) -> Data:
    """The pairs; who is right where, the faults and what became of the lost problems go into the ledger.

    Raises:
        DataError: no problems, or one that cannot be graded; an original that is seldom right; or no pair.
        SettingsError: no original, or a problem too long for a model.
        CheckpointError: the original has another tokenizer.
        EngineError, MissingExtraError: the verifier cannot run here.
    """
    given = ctx.inputs.get("original")
    if given is None:
        raise SettingsError("no original is named", where="original", fix="give original: CHECKPOINT, or --original")
    original = given if isinstance(given, Model) else load(given, dtype=compute_dtype(ctx.device))
    common_vocabulary(model, original, role="original")
    with verifier(settings.verifier) as grader:
        problems = problems_of(ctx.inputs.get("data"), grader)
        for problem in problems:
            modulus_of(problem)
        apart = ctx.inputs.get("held_out")
        held_out = [str(one["question"]) for one in problems_of(apart, grader)] if apart is not None else []
        asked = _Interview(settings, model, original, grader, ctx)
        parts = _parts(asked, problems)
    found = [one for path in parts for one in _read(path)]
    answers = told(found)
    ctx.ledger.table("answers", answers)
    if settings.judge == "none":
        ctx.progress.log(_said(answers))
        return Data([_graded(one) for one in found], about={"answers": answers})
    lost = [one for one in found if "fault" in one]
    pairs, dropped = paired(lost, held_out, settings.most)
    faults = counted(pairs, [one["fault"] for one in lost])
    funnel = [{"lost": len(lost)} | dropped | {"pairs": len(pairs)}]
    ctx.ledger.table("faults", faults)
    ctx.ledger.table("pairs", funnel)
    ctx.progress.log(f"{_said(answers)}; {len(pairs):,} pairs")
    _check(answers, funnel[0])
    return Data(pairs, about={"answers": answers, "faults": faults, "pairs": funnel[0]})


@dataclass(frozen=True)
class _Interview:
    """Two models that are asked the same."""

    settings: Diagnose
    model: Model
    original: Model
    grader: Verifier
    ctx: Context

    def __post_init__(self) -> None:
        for each in (self.model, self.original):
            module: Any = each.module
            module.to(self.ctx.device).eval()

    def key(self, problems: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = ("verifier", "judge", "k", "least", "temperature", "max_new_tokens", "seed")
        settled = {name: getattr(self.settings, name) for name in names}
        return {
            "model": self.model.identity,
            "original": self.original.identity,
            "problems": text_digest(problems),
        } | settled

    def part(self, problems: Sequence[dict[str, Any]]) -> Iterator[Found]:
        """What became of some problems."""
        prompts = [prompt_of(self.original.tokenizer, self.grader, problem) for problem in problems]
        first, own = (self._answers(each, prompts, problems) for each in (self.original, self.model))
        judged = range(len(problems)) if self.settings.judge != "none" else ()
        lost = [n for n in judged if first[n]["right"] and not own[n]["right"]]
        faults = self._faults([prompts[n] for n in lost], [problems[n] for n in lost], [own[n]["text"] for n in lost])
        located = dict(zip(lost, faults, strict=True))
        for n, problem in enumerate(problems):
            row = {"problem": problem, "chat": question_of(self.grader, problem), "original": first[n], "own": own[n]}
            yield row | ({"fault": located[n]} if n in located else {})

    def _answers(
        self, model: Model, prompts: Sequence[str], problems: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The likeliest answer to every problem."""
        samples = self._generate(model, prompts, [0] * len(prompts), n=1, temperature=0.0)
        return [
            {"text": one.text, "tokens": len(one.tokens), "right": is_right(one, self.grader, problem)}
            for one, problem in zip(samples, problems, strict=True)
        ]

    def _faults(
        self, prompts: Sequence[str], problems: Sequence[dict[str, Any]], solutions: Sequence[str]
    ) -> list[dict[str, Any]]:
        if not solutions:
            return []
        k = self.settings.k

        def rollouts(asked: Sequence[tuple[int, str]]) -> list[list[Ending]]:
            texts = [prompts[number] + before for number, before in asked]
            seeds = [self._seed(problems[number]["question"], before) for number, before in asked]
            samples = self._generate(self.original, texts, seeds, n=k, temperature=self.settings.temperature)
            return [
                [self._continued(one, before, problems[number]) for one in samples[place * k : (place + 1) * k]]
                for place, (number, before) in enumerate(asked)
            ]

        moduli = [modulus_of(problem) for problem in problems]
        found = JUDGES[self.settings.judge](solutions, rollouts, least=self.settings.least, moduli=moduli)
        return [
            asdict(fault) | {"rejected_tokens": len(self._ids(self.original, text[len(fault.before) :]))}
            for fault, text in zip(found, solutions, strict=True)
        ]

    def _continued(self, sample: Sample, before: str, problem: Mapping[str, Any]) -> Ending:
        right = is_right(replace(sample, text=before + sample.text), self.grader, problem)
        return Ending(sample.text, len(sample.tokens), right)

    def _generate(
        self, model: Model, texts: Sequence[str], seeds: Sequence[int], *, n: int, temperature: float
    ) -> list[Sample]:
        return generate(
            model.module,
            model.tokenizer,
            [self._ids(model, text) for text in texts],
            n=n,
            max_new_tokens=self.settings.max_new_tokens,
            temperature=temperature,
            seed=seeds,
            batch_size=self.settings.batch_size,
        )

    def _ids(self, model: Model, text: str) -> list[int]:
        return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _seed(self, *names: object) -> int:
        """Chance that depends on the seed and on names, and on no order of events."""
        return random.Random(" ".join(map(str, ("diagnose", self.settings.seed, *names)))).getrandbits(32)


def modulus_of(problem: Mapping[str, Any]) -> int | None:
    """That of the sums in solutions to the problem; None of ordinary sums.

    Raises:
        DataError: it is no whole number above 0.
    """
    given = problem.get("modulus")
    if given is None:
        return None
    whole = isinstance(given, int | float) and math.isfinite(given) and given == int(given) and given > 0
    if not whole and not (isinstance(given, str) and given.isdecimal() and int(given)):
        where = f"problem {problem.get('id', problem['question'])!r}"
        raise DataError(f"has the modulus {given!r}, which is no whole number above 0", where=where)
    return int(given)


def _parts(asked: _Interview, problems: Sequence[dict[str, Any]]) -> list[Path]:
    """Files with what came of every problem; those that an earlier start has finished are passed over."""
    store, key, found = Store(asked.ctx.work_dir / "answers"), asked.key(problems), []
    with asked.ctx.progress.task("diagnosing", total=len(problems), unit="problems") as task:
        for start in range(0, len(problems), PART):
            part, name = problems[start : start + PART], f"part{start // PART:06d}"
            if store.find(name, key) is None:
                lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in asked.part(part)]
                with store.writing(name, key) as directory:
                    (directory / FILE).write_text("".join(lines), encoding="utf-8")
            found.append(store.directory / name / FILE)
            task.advance(len(part))
    return found


def _read(path: Path) -> Iterator[Found]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def told(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Both shares of right answers, what was lost and gained, and whether that could be chance."""
    first, own = (np.array([one[name]["right"] for one in found], dtype=float) for name in ("original", "own"))
    lost, gained = int((first > own).sum()), int((own > first).sum())
    shares = [exact_share(right.sum(), len(right)) for right in (first, own)]
    change = paired_interval(own, first)
    low, high = (None if math.isnan(bound) else bound for bound in (change.low, change.high))  # of one problem
    return [
        {
            "problems": len(found),
            "original": shares[0].value,
            "original_low": shares[0].low,
            "original_high": shares[0].high,
            "model": shares[1].value,
            "model_low": shares[1].low,
            "model_high": shares[1].high,
            "change": change.value,
            "change_low": low,
            "change_high": high,
            "both": int((first * own).sum()),
            "lost": lost,
            "gained": gained,
            "neither": int(((1 - first) * (1 - own)).sum()),
            "mcnemar_p": mcnemar(lost, gained),
        }
    ]


def _graded(one: Mapping[str, Any]) -> dict[str, Any]:
    """A problem with both answers, as a row."""
    problem = {"id": str(one["problem"].get("id", "")), "question": one["problem"]["question"]}
    answers = {"original": one["original"]["text"], "model": one["own"]["text"]}
    return problem | answers | {"original_right": one["original"]["right"], "model_right": one["own"]["right"]}


def _said(answers: Sequence[Mapping[str, Any]]) -> str:
    one = answers[0]
    return (
        f"of {one['problems']:,} problems the original answers {one['original']:.1%} rightly and the model "
        f"{one['model']:.1%}: {one['lost']:,} lost, {one['gained']:,} gained (McNemar p = {one['mcnemar_p']:.2g})"
    )


def _check(answers: Sequence[Mapping[str, Any]], funnel: Mapping[str, int]) -> None:
    """Refuses what leaves nothing to learn from, in numbers."""
    one = answers[0]
    if one["original"] < ABLE:
        raise DataError(
            f"the original answers {one['original']:.1%} of {one['problems']:,} problems rightly: no repair brings "
            "a model back to what its original never was",
            where="data",
            fix="use problems that the original can do, raise max_new_tokens, or another verifier",
        )
    if not one["lost"]:
        raise DataError(
            f"the model has lost nothing on these: it answers all {one['both']:,} problems that the original does",
            where="data",
            fix="use harder problems, or more",
        )
    if not funnel["pairs"]:
        reasons = ", ".join(f"{number:,} {name}" for name, number in funnel.items() if number and name != "lost")
        raise DataError(
            f"none of {one['lost']:,} lost problems makes a pair: {reasons}",
            where="data",
            fix="raise k, or lower least",
        )
