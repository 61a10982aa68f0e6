"""The loop: one reading of each prompt, shared by its samples; then a token a step for the rows that are left."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.generate.warp import Sampling, drawn, warped

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sample:
    """One continuation.

    Attributes:
        text: of the tokens, without special ones, up to the stop string.
        tokens: all that were drawn, the one that ended the text included.
        logprobs: of each token under the distribution it was drawn from, after temperature, top-k and top-p.
        finish_reason: "stop" at an end token or stop string, "length" at the limit.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]


@dataclass
class _Row:
    """A continuation under way; its random numbers depend on its own key alone."""

    place: int
    random: random.Random
    tokens: list[int]
    logprobs: list[float]


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    n: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    stop_tokens: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
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
        max_new_tokens: most tokens of a continuation.
        temperature: 0 takes the likeliest token.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the likeliest until they hold this share.
        stop: strings that end a text, which stops before them.
        stop_tokens: ids that end a text, besides those of the model's generation config and tokenizer.
        seed: one for all (prompt i then has its own stream), or one for each prompt.
        batch_size: most rows at a time.

    Returns:
        `n` samples of the first prompt, then of the second, and so on.

    Raises:
        SettingsError: a setting out of its range, an empty prompt, or one too long for the model.
    """
    sampling = Sampling(temperature, top_k, top_p)
    ids = [list(tokenizer(one)["input_ids"]) if isinstance(one, str) else list(one) for one in prompts]
    _check(model, ids, n, max_new_tokens, batch_size, stop, seed)
    ends = _end_tokens(model, tokenizer) | set(stop_tokens)
    seeds = [f"{seed} {i}" for i in range(len(ids))] if isinstance(seed, int) else [str(one) for one in seed]
    rows = [
        _Row(place, random.Random(f"{seeds[place // n]} {place % n}"), [], []) for place in range(len(ids) * n)
    ]  # prompt-major
    samples: list[Sample | None] = [None] * len(rows)
    loop = _Loop(model, tokenizer, sampling, ends, tuple(stop), max_new_tokens)
    for together, first, several in _batches(ids, n, batch_size):
        running = [rows[index * n + first + sample] for index in together for sample in range(several)]
        for row, sample in loop.run([ids[index] for index in together], several, running):
            samples[row.place] = sample
    return [sample for sample in samples if sample is not None]


def _batches(ids: list[list[int]], n: int, batch_size: int) -> Iterator[tuple[list[int], int, int]]:
    """Which prompts share a batch, and which of the n continuations of each: the first, and how many."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # little padding
    share = max(1, batch_size // n)
    for start in range(0, len(order), share):
        for first in range(0, n, batch_size):
            yield order[start : start + share], first, min(batch_size, n - first)


@dataclass
class _Loop:
    """What carries batches from their prompts to their ends."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    ends: set[int]
    stop: tuple[str, ...]
    max_new_tokens: int

    def run(self, prompts: list[list[int]], several: int, rows: list[_Row]) -> list[tuple[_Row, Sample]]:
        from transformers import DynamicCache

        done: list[tuple[_Row, Sample]] = []
        tokens, mask = _padded(prompts, self.model.device)
        cache = DynamicCache(config=self.model.config)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._logits(tokens, mask, positions, cache).repeat_interleave(several, 0)
        if several > 1:
            cache.batch_repeat_interleave(several)
        mask, positions = mask.repeat_interleave(several, 0), positions[:, -1:].repeat_interleave(several, 0)
        while True:
            logprobs = warped(logits, self.sampling)
            chosen = drawn(logprobs, [row.random.random() for row in rows], self.sampling)
            said = logprobs.gather(-1, chosen[:, None])[:, 0].tolist()
            staying: list[int] = []
            for number, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
                row.tokens.append(token)
                row.logprobs.append(said[number])
                sample = self._ended(row)
                if sample is None:
                    staying.append(number)
                else:
                    done.append((row, sample))
            if not staying:
                return done
            if len(staying) < len(rows):
                kept = torch.tensor(staying, device=mask.device)
                rows, chosen = [rows[number] for number in staying], chosen[kept]
                mask, positions = mask[kept], positions[kept]
                cache.batch_select_indices(kept)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], -1)
            positions = positions + 1
            logits = self._logits(chosen[:, None], mask, positions, cache)

    def _logits(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Of the token after the last, (rows, vocabulary)."""
        output = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _ended(self, row: _Row) -> Sample | None:
        """The sample of a row that has ended, or None."""
        at_end = row.tokens[-1] in self.ends
        cut = self._cut(row) if self.stop and not at_end else None
        if not at_end and cut is None and len(row.tokens) < self.max_new_tokens:
            return None
        text = self._text(row.tokens) if cut is None else cut
        return Sample(text, row.tokens, row.logprobs, "stop" if at_end or cut is not None else "length")

    def _cut(self, row: _Row) -> str | None:
        """The text before the first stop string, where there is one."""
        window = max(map(len, self.stop)) * 4 + 8  # a character has at most four bytes, each a token at most
        if not any(word in self._text(row.tokens[-window:]) for word in self.stop):
            return None
        text = self._text(row.tokens)
        places = [text.index(word) for word in self.stop if word in text]
        return text[: min(places)] if places else None

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def _padded(prompts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of one width, padded on the left, and which tokens are theirs."""
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for number, prompt in enumerate(prompts):
        tokens[number, width - len(prompt) :] = torch.tensor(prompt)
        mask[number, width - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    config = model.generation_config
    of_model = config.eos_token_id if config is not None else None
    found = of_model if isinstance(of_model, list) else [of_model]
    return {int(end) for end in [*found, tokenizer.eos_token_id] if isinstance(end, int)}


def _check(
    model: PreTrainedModel,
    ids: list[list[int]],
    n: int,
    max_new_tokens: int,
    batch_size: int,
    stop: Sequence[str],
    seed: int | Sequence[int],
) -> None:
    for name, number in (("n", n), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if number < 1:
            raise SettingsError(f"is {number}, but 1 or more is needed", where=name)
    if isinstance(stop, str) or not all(stop):
        raise SettingsError("is no list of strings that hold something", where="stop")
    if not isinstance(seed, int) and len(seed) != len(ids):
        raise SettingsError(f"has {len(seed)} entries for {len(ids)} prompts", where="seed")
    most = getattr(model.config, "max_position_embeddings", None)
    for number, prompt in enumerate(ids, start=1):
        if not prompt:
            raise SettingsError("has no token", where=f"prompt {number}")
        if most is not None and len(prompt) + max_new_tokens > most:
            raise SettingsError(
                f"has {len(prompt):,} tokens, and with {max_new_tokens:,} new ones passes the {most:,} of the model",
                where=f"prompt {number}",
                fix="lower max_new_tokens, or shorten the prompt",
            )
