"""A model's perplexity on the tokens that need a long context, chosen by an evaluator's own gain.

Documents are cut into windows, none of which reaches into the next document. The evaluator reads each window whole and
in short pieces, the model whole; `burnish.evaluate.maths.key_tokens` has the rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.core.checkpoint import Model, compute_dtype, pick_device
from burnish.core.errors import DataError, SettingsError
from burnish.core.progress import Progress
from burnish.core.statistics import interval
from burnish.data.read import Data, data_hash, read_texts
from burnish.evaluate.evaluation import Evaluation
from burnish.evaluate.forward import ChunkedLogits
from burnish.evaluate.longppl.settings import LongPplMeasurement
from burnish.evaluate.maths.divergence import cross_entropy, normalise
from burnish.evaluate.maths.key_tokens import key_stretches, key_tokens, short_pieces, within
from burnish.evaluate.measure import check_kind, describe, exact, longest_context, metric, network, not_measured

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.evaluate.stage import Evaluate

PROTOCOL_VERSION = 1
"""Raised whenever a change here changes numbers."""


def measure_longppl(
    settings: LongPplMeasurement,
    on_text: Evaluate,
    model: Model,
    evaluator: Model,
    *,
    text: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """LongPPL of a causal language model, its perplexity on the same windows, and the number of key tokens.

    Args:
        settings: which tokens count.
        on_text: text, windows, context, dtype, device.
        model: left as it is.
        evaluator: chooses the tokens; may be the model.
        text: texts in place of the setting.
        progress: for a bar.

    Raises:
        SettingsError: windows beyond a model's positions, or not beyond the short context.
        DataError: too little text, or a tokenizer that does not say which characters its tokens stand for.
        CheckpointError: not a causal language model.
    """
    check_windows(settings, on_text, model, evaluator)
    device = pick_device(on_text.device)
    dtype = compute_dtype(device) if on_text.dtype == "auto" else getattr(torch, on_text.dtype)
    data: Data = on_text.text if text is None else text
    name = on_text.text if text is None else "given texts"
    windows = list(documents_cut(model.tokenizer, read_texts(data, tokenizer=model.tokenizer), on_text, where=name))
    alone = model.identity == evaluator.identity
    chosen_on = windows if alone else [read_by(evaluator, window) for window in windows]
    scored = ChunkedLogits(network(model, dtype=dtype, device=device), name="the model")
    chooses = scored
    if not alone:
        chooses = ChunkedLogits(network(evaluator, dtype=dtype, device=device), name="the evaluator")
    rows: list[dict[str, float]] = []
    bars = progress or Progress(enabled=False)
    with bars.task("reading windows whole and in pieces", total=len(windows), unit="windows") as task:
        for number, (window, theirs) in enumerate(zip(windows, chosen_on, strict=True)):
            losses = losses_of(chooses, theirs.ids, number)
            stretches = chosen(settings, chooses, theirs, losses, number)
            losses = losses if alone else losses_of(scored, window.ids, number)
            rows.append(sums(losses, within(window.offsets[1:], stretches)))
            task.advance()
    protocol = describe(
        on_text.model_copy(update={"speed": False}),
        text=name,
        text_hash=data_hash(data),
        tokens=torch.stack([window.ids for window in windows]),
        dtype=dtype,
        device=device,
        reference=evaluator.identity,
    )
    protocol |= {"benchmark": "LongPPL", "longppl_version": PROTOCOL_VERSION} | settings.canonical()
    protocol["evaluator"] = protocol.pop("reference")
    return evaluation(rows, protocol)


def check_windows(settings: LongPplMeasurement, on_text: Evaluate, model: Model, evaluator: Model) -> None:
    """Refuses windows in which nothing has a long context, and those that a model's positions do not hold."""
    if on_text.context <= settings.short_context:
        raise SettingsError(
            f"windows of {on_text.context:,} tokens do not reach beyond a short context of {settings.short_context:,}, "
            "so that no token has a longer one",
            where="context",
            fix="raise context, or lower short_context",
        )
    for one, called in ((model, "model"), (evaluator, "evaluator")):
        check_kind(one)
        longest = longest_context(one)
        if longest is not None and on_text.context > longest:
            raise SettingsError(
                f"context is {on_text.context:,}, but the {called}'s positions end at {longest:,}",
                where="context",
                fix="lower context",
            )


@dataclass(frozen=True)
class Excerpt:
    """A stretch of a document.

    Attributes:
        text: its characters.
        ids: its tokens, none of them special.
        offsets: first character and end of each token, within the text.
    """

    text: str
    ids: Int[Tensor, " tokens"]
    offsets: Int[np.ndarray, "tokens 2"]


def documents_cut(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], on_text: Evaluate, *, where: str
) -> Iterator[Excerpt]:
    """The first windows of `context` tokens that lie within one document.

    Raises:
        DataError: there are fewer, or the tokenizer does not say which characters its tokens stand for.
    """
    left, found, longest = on_text.max_chars, 0, 0
    for text in texts:
        if left is not None:
            text = text[:left]
            left -= len(text)
        ids, offsets = tokens_of(tokenizer, text, where)
        longest = max(longest, len(ids))
        for start in range(0, len(ids) - on_text.context + 1, on_text.context):
            own = slice(start, start + on_text.context)
            first, end = int(offsets[own][0, 0]), int(offsets[own][-1, 1])
            yield Excerpt(text[first:end], ids[own], offsets[own] - first)
            found += 1
            if found == on_text.num_windows:
                return
    raise DataError(
        f"has {found:,} windows of {on_text.context:,} tokens within one document, whose longest has {longest:,}, but "
        f"{on_text.num_windows:,} are asked for",
        where=where,
        fix="use longer documents, fewer windows or a shorter context",
    )


def read_by(evaluator: Model, window: Excerpt) -> Excerpt:
    """The same text in the tokens of an evaluator.

    Raises:
        SettingsError: more of them than its positions hold.
    """
    ids, offsets = tokens_of(evaluator.tokenizer, window.text, "evaluator")
    longest = longest_context(evaluator)
    if longest is not None and len(ids) > longest:
        raise SettingsError(
            f"a window has {len(ids):,} of the evaluator's tokens, whose positions end at {longest:,}",
            where="context",
            fix="lower context",
        )
    return Excerpt(window.text, ids, offsets)


def tokens_of(
    tokenizer: PreTrainedTokenizerBase, text: str, where: str
) -> tuple[Int[Tensor, " tokens"], Int[np.ndarray, "tokens 2"]]:
    """Token ids without special ones, and the characters that each stands for.

    Raises:
        DataError: the tokenizer does not say which.
    """
    if not tokenizer.is_fast:
        raise DataError("the tokenizer does not say which characters a token stands for", where=where)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return torch.tensor(found["input_ids"], dtype=torch.long), np.array(found["offset_mapping"]).reshape(-1, 2)


@torch.inference_mode()
def losses_of(logits: ChunkedLogits, ids: Int[Tensor, " tokens"], window: int) -> Float[np.ndarray, " later"]:
    """Of all tokens but the first, nats."""
    targets = iter(ids[1:].to(logits.module.device).split(logits.chunk))
    chunks = logits.chunks(ids, index=window)
    return torch.cat([cross_entropy(normalise(part), next(targets)) for part in chunks]).double().cpu().numpy()


def chosen(
    settings: LongPplMeasurement,
    logits: ChunkedLogits,
    window: Excerpt,
    losses: Float[np.ndarray, " later"],
    number: int,
) -> Int[np.ndarray, "stretches 2"]:
    """Characters of the tokens that need the long context.

    Args:
        settings: which do.
        logits: of the evaluator.
        window: in its tokens.
        losses: of these, with the whole window.
        number: of the window.
    """
    short = settings.short_context
    pieces = short_pieces(len(window.ids), short, settings.short_step)
    each = [losses_of(logits, window.ids[start:end], number)[first - start - 1 :] for start, first, end in pieces]
    keys = key_tokens(
        losses[short - 1 :],
        np.concatenate([np.zeros(0), *each]),  # an evaluator's tokens may be so few that no piece is needed
        key_gain=settings.key_gain,
        key_loss=settings.key_loss,
    )
    return key_stretches(window.offsets[short:][keys])


def sums(losses: Float[np.ndarray, " later"], counted: Bool[np.ndarray, " later"]) -> dict[str, float]:
    """Tokens and nats of a window, of all and of the key tokens."""
    return {
        "tokens": float(len(losses)),
        "nats": float(losses.sum()),
        "key_tokens": float(counted.sum()),
        "key_nats": float(losses[counted].sum()),
    }


def evaluation(rows: list[dict[str, float]], protocol: dict[str, Any]) -> Evaluation:
    """Metrics with intervals over windows."""
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    num = int(columns["key_tokens"].sum())
    none = not_measured("", "no token needs the context beyond the short one")
    found = metric(interval(columns["key_nats"], columns["key_tokens"]).map(math.exp), "") if num else none
    metrics = {
        "longppl": found,
        "perplexity": metric(interval(columns["nats"], columns["tokens"]).map(math.exp), ""),
        "key_tokens": exact(num, ""),
    }
    return Evaluation(metrics, {name: values.tolist() for name, values in columns.items()}, protocol)
