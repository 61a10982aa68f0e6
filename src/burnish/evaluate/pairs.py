"""Reward models on preference pairs, and policies as the reward models that they imply.

    found = measure_pairs(PairMeasurement(), burnish.load("reward"), read_pairs("prefs.jsonl"))
    found.evaluation.metrics["pair_accuracy"]      # {"value": 0.71, "low": 0.68, "high": 0.74, ...}
    better = compare(first.evaluation.sequences, second.evaluation.sequences, column="right")

A sequence classifier with one label gives an answer its logit. A causal language model gives it

    r = beta (log p(answer | prompt) - log p_ref(answer | prompt)),

the implicit reward of "Direct Preference Optimization", 2023, arXiv 2305.18290, eq. 5, and needs the reference that it
was trained from. Texts are written out as TRL's trainers write them: a text ends with the end token, a conversation
goes through the chat template. Pairs that are too long are left out and counted: half an answer is another answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from burnish.core.checkpoint import Model, common_vocabulary, compute_dtype, pick_device
from burnish.core.errors import CheckpointError, DataError, NumericalError, SettingsError
from burnish.core.kinds import PREDICTS_TEXT, Kind
from burnish.core.outside import parse_json
from burnish.core.progress import Progress
from burnish.core.statistics import Interval
from burnish.data.chat import written_out
from burnish.data.forms import Chat
from burnish.data.preferences import Pair, Pairs, rows_digest
from burnish.data.prompts import question_groups, split_prompt
from burnish.evaluate import pair_metrics
from burnish.evaluate.evaluation import Evaluation, Metric
from burnish.evaluate.forward import ChunkedLogits
from burnish.evaluate.measure import device_name, longest_context, metric, network
from burnish.evaluate.pair_settings import PairMeasurement
from burnish.evaluate.rewardbench import section_scores

if TYPE_CHECKING:
    from burnish.core.ledger import Ledger

PROTOCOL_VERSION = 1
"""Raised whenever a change here changes numbers."""


@dataclass(frozen=True)
class Written:
    """An answer in tokens, after its prompt.

    Attributes:
        ids: of both.
        start: where the answer begins.
    """

    ids: tuple[int, ...]
    start: int

    @property
    def answer_tokens(self) -> int:
        return len(self.ids) - self.start


@dataclass
class PairEvaluation:
    """One reward on one set of pairs.

    Attributes:
        evaluation: metrics, sums per question (`pairs`, `right`, `nats`), and the protocol.
        margins: of every pair that was measured, in the order of the file.
        kept: their places among the pairs.
        questions: of each, its question.
        tables: {name: rows}: `pair_calibration`, `pair_margins`, `pair_subsets`, `pair_sections`.
        left_out: pairs that were too long.
    """

    evaluation: Evaluation
    margins: np.ndarray
    kept: list[int]
    questions: list[str]
    tables: dict[str, list[dict[str, Any]]]
    left_out: int = 0

    def record(self, ledger: Ledger, checkpoint: str, path: str) -> None:
        """Appends the measurement and its tables."""
        self.evaluation.record(ledger, checkpoint, path)
        for name, rows in self.tables.items():
            ledger.table(name, rows)


def measure_pairs(
    settings: PairMeasurement,
    model: Model,
    pairs: Pairs,
    *,
    reference: Model | None = None,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> PairEvaluation:
    """Scores both answers of every pair.

    Args:
        settings: how; its `reference`, `columns`, `on_bad_pair` and `limit` are for whoever loads and reads.
        model: a sequence classifier with one label, or a policy.
        pairs: as `burnish.data.preferences` reads them.
        reference: of a policy.
        dtype, device: to compute with.
        progress: for the bars.

    Raises:
        CheckpointError: a classifier of several labels, a reference of another vocabulary, no tokenizer.
        SettingsError: a policy without a reference, or a reward model with one.
        DataError: conversations without a chat template, or every pair too long.
        NumericalError: a score is not finite.
    """
    check_reader(model, reference)
    place = pick_device(device)
    compute = compute_dtype(place) if dtype == "auto" else getattr(torch, dtype)
    longest = min(settings.max_length, longest_context(model) or settings.max_length)
    written = [_both(model.tokenizer, row, settings.chat, pairs.where(index)) for index, row in enumerate(pairs.rows)]
    kept = [index for index, sides in enumerate(written) if max(len(side.ids) for side in sides) <= longest]
    if not kept:
        raise DataError(f"holds no pair of at most {longest:,} tokens", where=pairs.source, fix="raise max_length")
    sides = [written[index] for index in kept]
    answers = list(dict.fromkeys(side for both in sides for side in both))
    bars = progress or Progress(enabled=False)
    models = [network(one, dtype=compute, device=place) for one in (model, reference) if one is not None]
    score = _scores(models, answers, settings, bars)
    rows, groups = [pairs.rows[index] for index in kept], question_groups(pairs.rows)
    of = {answer: place for place, answer in enumerate(answers)}
    margins = np.array([score[of[chosen]] - score[of[rejected]] for chosen, rejected in sides])
    longer = np.sign([chosen.answer_tokens - rejected.answer_tokens for chosen, rejected in sides]).astype(int)
    subsets = [str(row.get(settings.subset) or "") for row in rows]
    questions = [groups[index] for index in kept]
    found = summary(margins, longer, questions, subsets)
    protocol = _protocol(settings, pairs.source, rows, reference) | {
        "max_length": longest,
        "dtype": str(compute).removeprefix("torch."),
        "device": device_name(place),
    }
    evaluation = Evaluation(found.metrics, found.sequences, protocol)
    return PairEvaluation(evaluation, margins, kept, questions, found.tables, len(written) - len(kept))


def _protocol(settings: PairMeasurement, source: str, rows: list[Pair], reference: Model | None) -> dict[str, Any]:
    """What two measurements must share to be comparable, but for where they were computed."""
    from importlib.metadata import version

    return {
        "version": PROTOCOL_VERSION,
        "engine": f"transformers {version('transformers')}",
        "pairs": source,
        "pairs_hash": rows_digest(rows),
        "num_pairs": len(rows),
        "chat": settings.chat,
        "reward": "logit of a classifier" if reference is None else f"{settings.beta:g} log-ratio",
        "reference": "" if reference is None else reference.identity,
        "threads": torch.get_num_threads(),
        "interval": "95 %, Student's t over questions, shares on their logit",
    }


def difference(first: PairEvaluation, second: PairEvaluation) -> Interval:
    """Accuracy of the first minus that of the second on the pairs that both have read, paired, over questions.

    Raises:
        DataError: no pair was read by both.
    """
    theirs = {number: place for place, number in enumerate(second.kept)}
    ours = [place for place, number in enumerate(first.kept) if number in theirs]
    if not ours:
        raise DataError("no pair was read by both", where="the pairs", fix="raise max_length")
    names = {name: place for place, name in enumerate(dict.fromkeys(first.questions))}
    place = np.array([names[first.questions[at]] for at in ours])
    other = second.margins[[theirs[first.kept[at]] for at in ours]]
    gap = pair_metrics.right(first.margins[ours]) - pair_metrics.right(other)
    return pair_metrics.mean_over(gap, place)


def check_reader(model: Model, reference: Model | None) -> None:
    """Refuses what gives no single reward."""
    where = str(model.path or "model")
    if model.lineage.kind is Kind.SEQUENCE_CLASSIFIER:
        if model.config.num_labels != 1:
            raise CheckpointError(f"has {model.config.num_labels} labels, and a reward model has one", where=where)
        if reference is not None:
            raise SettingsError("a reward model has no reference", where="reference", fix="leave it out")
        return
    if model.lineage.kind not in PREDICTS_TEXT:
        raise CheckpointError(f"is a {model.lineage.kind}, which prefers no answer", where=where)
    if reference is None:
        raise SettingsError(
            "a policy's reward is its log-probability over that of its reference, and none is named",
            where="reference",
            fix="give --reference, the checkpoint that it was trained from",
        )
    common_vocabulary(model, reference, role="reference")


# -- texts -------------------------------------------------------------------------------------------------------------


def _both(tokenizer: Any, row: Pair, chat: bool, where: str) -> tuple[Written, Written]:
    """Chosen and rejected in tokens."""
    if isinstance(row["chosen"], str) and not chat:
        prompt, *answers = split_prompt(row)
        return _written(tokenizer, prompt, answers[0]), _written(tokenizer, prompt, answers[1])
    if isinstance(row["chosen"], str):
        prompt, *texts = split_prompt(row)
        asked = [{"role": "user", "content": prompt}] if prompt else []
        sides = [[{"role": "assistant", "content": text}] for text in texts]
    else:
        asked, sides = row.get("prompt") or [], [row["chosen"], row["rejected"]]
    if not tokenizer.chat_template:
        raise DataError("needs a chat template, and the tokenizer has none", where=where, fix="use plain text")
    tools = row.get("tools")
    tools = parse_json(tools, where=f"{where}, tools", error=DataError) if isinstance(tools, str) else tools or []
    shared = next((i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a != b), min(map(len, sides)))
    opening = [*asked, *sides[0][: min(shared, len(sides[0]) - 1, len(sides[1]) - 1)]]
    before = ""
    if opening:
        before = written_out(tokenizer, Chat(opening, tools), where=where, add_generation_prompt=True)
    first, second = (written_out(tokenizer, Chat([*asked, *side], tools), where=where) for side in sides)
    return _tokens(tokenizer, before, first, special=False), _tokens(tokenizer, before, second, special=False)


def _written(tokenizer: Any, prompt: str, answer: str) -> Written:
    end, mark = tokenizer.eos_token or "", tokenizer.bos_token
    whole = prompt + answer if answer.endswith(end) else prompt + answer + end
    if mark and whole.startswith(mark) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        prompt, whole = prompt.removeprefix(mark), whole.removeprefix(mark)
    return _tokens(tokenizer, prompt, whole, special=True)


def _tokens(tokenizer: Any, before: str, whole: str, *, special: bool) -> Written:
    """The answer starts where the tokens of prompt and whole part; at least one is left of it."""
    start, ids = (tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"] for text in (before, whole))
    shared = next((i for i, (a, b) in enumerate(zip(start, ids, strict=False)) if a != b), min(len(start), len(ids)))
    return Written(tuple(ids), max(1, min(shared, len(ids) - 1)))


# -- scores ------------------------------------------------------------------------------------------------------------


def _scores(models: list[Any], answers: Sequence[Written], settings: PairMeasurement, bars: Progress) -> np.ndarray:
    """The reward of every answer: of one classifier, or of a policy and its reference."""
    if len(models) == 1:
        return reward_scores(models[0], answers, settings.batch, bars)
    policy, reference = (
        log_probabilities(one, answers, name, bars)
        for one, name in zip(models, ("the model", "the reference"), strict=True)
    )
    return settings.beta * (policy - reference)


@torch.inference_mode()
def reward_scores(module: Any, answers: Sequence[Written], batch: int, bars: Progress) -> np.ndarray:
    """The classifier's logit per answer. Without a padding token it reads one at a time, as the stock class must."""
    pad = module.config.get_text_config().pad_token_id
    size = batch if pad is not None else 1
    order = sorted(range(len(answers)), key=lambda place: len(answers[place].ids))
    scores = np.zeros(len(answers))
    with bars.task("scoring answers", total=len(answers), unit="answers") as task:
        for start in range(0, len(order), size):
            part = order[start : start + size]
            longest = len(answers[part[-1]].ids)
            ids = torch.full((len(part), longest), 0 if pad is None else pad)
            mask = torch.zeros_like(ids)
            for row, place in enumerate(part):
                ids[row, : len(answers[place].ids)] = torch.tensor(answers[place].ids)
                mask[row, : len(answers[place].ids)] = 1
            logits = module(input_ids=ids.to(module.device), attention_mask=mask.to(module.device)).logits
            scores[part] = logits[:, 0].double().cpu().numpy()
            task.advance(len(part))
    if not np.isfinite(scores).all():
        raise NumericalError("a reward is not finite", where="the model", fix="the checkpoint is damaged, or overflows")
    return scores


@torch.inference_mode()
def log_probabilities(module: Any, answers: Sequence[Written], name: str, bars: Progress) -> np.ndarray:
    """log p(answer | prompt) per answer, summed over its tokens."""
    chunked = ChunkedLogits(module, name=name)
    sums = np.zeros(len(answers))
    with bars.task(f"reading answers with {name}", total=len(answers), unit="answers") as task:
        for place, answer in enumerate(answers):
            window = torch.tensor(answer.ids)
            targets = window[1:].to(module.device)
            total, start = 0.0, 0
            for logits in chunked.chunks(window, index=place):
                stop = start + len(logits)
                first = max(start, answer.start - 1)
                if first < stop:
                    kept = logits[first - start :].float().log_softmax(dim=-1)
                    total += float(kept.gather(1, targets[first:stop, None]).double().sum())
                start = stop
            sums[place] = total
            task.advance()
    return sums


# -- figures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """Metrics, sums per question, and tables of one set of margins."""

    metrics: dict[str, Metric]
    sequences: dict[str, list[float]]
    tables: dict[str, list[dict[str, Any]]]


def summary(margins: np.ndarray, longer: np.ndarray, groups: Sequence[str], subsets: Sequence[str]) -> Summary:
    """Everything that is said of margins.

    Args:
        margins: per pair, chosen minus rejected.
        longer: sign of the chosen answer's length minus the rejected one's.
        groups: the question of each pair.
        subsets: the subset of each pair, or nothing.
    """
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    place = np.array([names[group] for group in groups])
    correct, losses = pair_metrics.right(margins), pair_metrics.log_loss(margins)
    parts = pair_metrics.calibration(margins, place)
    shares = {"pair_accuracy": pair_metrics.mean_over(correct, place, share=True)}
    shares |= pair_metrics.length_bias(margins, longer, place)
    metrics = {name: _metric(found) for name, found in shares.items()}
    metrics["pair_log_loss"] = _metric(pair_metrics.mean_over(losses, place), "nats")
    metrics["overconfidence"] = _metric(pair_metrics.mean_over(pair_metrics.confidence(margins) - correct, place))
    metrics["calibration_error"] = _metric(Interval(pair_metrics.calibration_error(parts), np.nan, np.nan))
    metrics["mean_margin"] = _metric(pair_metrics.mean_over(margins, place))
    hits, sizes = pair_metrics.by_question(correct, place)
    sequences = {
        "pairs": sizes.tolist(),
        "right": hits.tolist(),
        "nats": pair_metrics.by_question(losses, place)[0].tolist(),
    }
    tables: dict[str, list[dict[str, Any]]] = {
        "pair_calibration": [{key: _plain(value) for key, value in row.items()} for row in parts],
        "pair_margins": list(pair_metrics.histogram(margins)),
    }
    if any(subsets):
        tables |= subset_tables(correct, place, subsets)
    return Summary(metrics, sequences, tables)


def subset_tables(correct: np.ndarray, place: np.ndarray, subsets: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Accuracy of every subset, and of RewardBench's sections where the subsets are its."""
    rows, found = [], {}
    for name in dict.fromkeys(subsets):
        inside = np.array([subset == name for subset in subsets])
        share = pair_metrics.mean_over(correct[inside], place[inside], share=True)
        found[name] = (share.value, int(inside.sum()))
        bounds = {"low": _plain(share.low), "high": _plain(share.high)}
        rows.append({"subset": name or "(none)", "pairs": int(inside.sum()), "accuracy": share.value, **bounds})
    sections = [{"section": name, "accuracy": score} for name, score in section_scores(found).items()]
    return {"pair_subsets": rows} | ({"pair_sections": sections} if sections else {})


def _metric(found: Interval, unit: str = "") -> Metric:
    if np.isnan(found.value):
        return {"value": None, "low": None, "high": None, "unit": unit, "note": "not measured: no such pair"}
    return metric(found, unit)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value
