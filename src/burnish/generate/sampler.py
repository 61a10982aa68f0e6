"""The loop: one reading of each prompt, shared by its samples; then a token a step for the rows that are left."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from burnish.core.errors import SettingsError
from burnish.generate.batch import Batch, Continuation, PassObserver, Sample, Wish, end_tokens
from burnish.generate.speculation import Proposer, check_trees
from burnish.generate.warp import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    n: int = 1,
    max_new_tokens: int | Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    stop_tokens: Sequence[int] = (),
    seed: int | Sequence[int | str] = 0,
    batch_size: int = 64,
    speculate: Proposer | None = None,
    observer: PassObserver | None = None,
) -> list[Sample]:
    """Draws `n` continuations of every prompt.

    A row's random numbers follow from its prompt's seed and its number among the n, so it does not matter which rows
    share its batch, as far as the model's logits do not depend on that: in float32 they differ by rounding alone, in
    bfloat16 enough to change texts.

    Args:
        model: a causal model, as it is (its device, dtype, mode).
        tokenizer: its tokenizer.
        prompts: texts, which the tokenizer encodes with its special tokens, or token ids.
        n: continuations of each prompt; the prompt is read once.
        max_new_tokens: most tokens of a continuation, one number for all, or one for each prompt.
        temperature: 0 takes the likeliest token.
        top_k, top_p: keep the k likeliest (0 keeps all), and the likeliest until they hold this share.
        stop, stop_tokens: strings and ids that end a text, before the string, besides the model's and tokenizer's ends.
        seed: one for all (prompt i then has its own stream), or one for each prompt.
        batch_size: most rows at a time.
        speculate: proposes tokens, such as `burnish.serve.speculate.Lookahead()`: the same texts in fewer passes.
        observer: told of every pass over drawn tokens, such as `burnish.steer.steer(...)`; not beside `speculate`.

    Returns:
        `n` samples of the first prompt, then of the second, and so on.

    Raises:
        SettingsError: a setting out of its range, an empty prompt, one too long, or a model that cannot read trees.
    """
    ids = [list(tokenizer(one)["input_ids"]) if isinstance(one, str) else list(one) for one in prompts]
    limits = [max_new_tokens] * len(ids) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    _check(model, ids, n, limits, batch_size, stop, seed, speculate, observer)
    ends = end_tokens(model, tokenizer) | set(stop_tokens)
    wishes = [Wish(Sampling(temperature, top_k, top_p), limit, ends, tuple(stop)) for limit in limits]
    seeds = [f"{seed} {i}" for i in range(len(ids))] if isinstance(seed, int) else [str(one) for one in seed]
    rows = [_row(place, n, wishes, seeds) for place in range(len(ids) * n)]  # prompt-major
    samples: list[Sample | None] = [None] * len(rows)
    for together, first, several in _batches(ids, n, 1 if speculate is not None else batch_size):
        batch = Batch(model, tokenizer, proposer=speculate, observer=observer)
        running = [rows[index * n + first + sample] for index in together for sample in range(several)]
        batch.join([ids[index] for index in together], several, running)
        while batch.rows:
            for row, sample in batch.step():
                samples[row.place] = sample
    return [sample for sample in samples if sample is not None]


def _row(place: int, n: int, wishes: Sequence[Wish], seeds: Sequence[str]) -> Continuation:
    return Continuation(place, random.Random(f"{seeds[place // n]} {place % n}"), wishes[place // n])


def _batches(ids: list[list[int]], n: int, batch_size: int) -> Iterator[tuple[list[int], int, int]]:
    """Which prompts share a batch, and which of the n continuations of each: the first, and how many."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # little padding
    share = max(1, batch_size // n)
    for start in range(0, len(order), share):
        for first in range(0, n, batch_size):
            yield order[start : start + share], first, min(batch_size, n - first)


def _check(
    model: PreTrainedModel,
    ids: list[list[int]],
    n: int,
    limits: Sequence[int],
    batch_size: int,
    stop: Sequence[str],
    seed: int | Sequence[int | str],
    speculate: Proposer | None,
    observer: PassObserver | None,
) -> None:
    if speculate is not None and observer is not None:
        raise SettingsError("is not told of passes over several tokens", where="observer", fix="leave speculate out")
    if speculate is not None:
        check_trees(model)
    for name, number in (("n", n), ("max_new_tokens", min(limits, default=1)), ("batch_size", batch_size)):
        if number < 1:
            raise SettingsError(f"is {number}, but 1 or more is needed", where=name)
    if isinstance(stop, str) or not all(stop):
        raise SettingsError("is no list of strings that hold something", where="stop")
    if not isinstance(seed, int) and len(seed) != len(ids):
        raise SettingsError(f"has {len(seed)} entries for {len(ids)} prompts", where="seed")
    if len(limits) != len(ids):
        raise SettingsError(f"has {len(limits)} entries for {len(ids)} prompts", where="max_new_tokens")
    most = getattr(model.config, "max_position_embeddings", None)
    for number, (prompt, limit) in enumerate(zip(ids, limits, strict=True), start=1):
        if not prompt:
            raise SettingsError("has no token", where=f"prompt {number}")
        if most is not None and len(prompt) + limit > most:
            raise SettingsError(
                f"has {len(prompt):,} tokens, and with {limit:,} new ones passes the {most:,} of the model",
                where=f"prompt {number}",
                fix="lower max_new_tokens, or shorten the prompt",
            )
