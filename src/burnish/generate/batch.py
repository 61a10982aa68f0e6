"""Rows that share forward passes: prompts join at any time, a step draws a token for every row, ended rows leave."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch import Tensor

from burnish.generate.speculation import Proposer, Speculating, Verified, read_tree
from burnish.generate.warp import Sampling, drawn, warped

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

READ_AT_A_TIME = 4096
"""Tokens of prompts in a forward pass: what it computes then stays near the processor, and needs little memory."""
SCORED_AT_A_TIME = 512
"""Tokens of a prompt in a forward pass that keeps the logits of all of them."""


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


@dataclass(frozen=True)
class Wish:
    """How a continuation is drawn and where it ends.

    Attributes:
        sampling: how.
        max_new_tokens: most tokens.
        ends: tokens that end it.
        stop: strings that end it, which stops before them.
        num_tops: whether the model's own log-probabilities are noted, and for how many alternatives beside the token.
    """

    sampling: Sampling
    max_new_tokens: int
    ends: frozenset[int]
    stop: tuple[str, ...] = ()
    num_tops: int | None = None


@dataclass(frozen=True)
class Noted:
    """A token under the model itself, before temperature and cuts: its log-probability and the likeliest tokens'."""

    logprob: float
    tops: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Given(Noted):
    """A token of a prompt: also its id, and its rank, 1 for the likeliest."""

    token: int
    rank: int


@dataclass
class Continuation:
    """A continuation under way; its random numbers depend on its own key alone."""

    place: int
    random: random.Random
    wish: Wish
    owner: Any = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    noted: list[Noted] = field(default_factory=list)
    speculating: Speculating | None = None


class PassObserver(Protocol):
    """Whoever must know whose tokens a pass reads, such as an intervention that ends with a row's thinking."""

    def before_pass(self, rows: Sequence[Sequence[int]]) -> None:
        """Called before each pass over one token of every row, with all that each row has written."""
        ...


class Batch:
    """Rows of one model.

    Args:
        model: a causal model, as it is.
        tokenizer: its tokenizer.
        new_cache: makes an empty cache; by default what the model's layers want. Rows can join others only in a cache
            that keeps every key and value of every layer.
        proposer: of the tokens that follow, for a row that is alone; several rows take a token a pass, as without.
            It is for models that `check_trees` lets through.
        observer: told of every pass over drawn tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        new_cache: Callable[[], Any] | None = None,
        proposer: Proposer | None = None,
        observer: PassObserver | None = None,
    ) -> None:
        from burnish.generate.cache import roomy

        self._observer = observer
        self.model, self.tokenizer, self.rows = model, tokenizer, list[Continuation]()
        self._new_cache = new_cache or (lambda: roomy(model.config))
        self._cache: Any = None
        self._proposer, self._tree = proposer, cast(Verified | None, None)
        self._mask = self._positions = self._logits = torch.empty(0)

    def join(self, prompts: Sequence[Sequence[int]], several: int, rows: Sequence[Continuation]) -> None:
        """Reads prompts, each once, and adds `several` rows for each of them; `rows` are prompt-major."""
        self._settle()
        if self._proposer is not None:
            for number, row in enumerate(rows):
                row.speculating = self._proposer.begin(prompts[number // several])
        for together in _read_together([len(prompt) for prompt in prompts]):
            new = [row for number in together for row in rows[number * several : (number + 1) * several]]
            self._read([prompts[number] for number in together], several, new)

    def _read(self, prompts: Sequence[Sequence[int]], several: int, rows: Sequence[Continuation]) -> None:
        tokens, mask = _padded(prompts, self.model.device)
        cache = self._new_cache()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(tokens, mask, positions, cache).repeat_interleave(several, 0)
        if several > 1:
            cache.batch_repeat_interleave(several)
        mask, positions = mask.repeat_interleave(several, 0), positions[:, -1:].repeat_interleave(several, 0)
        if self.rows:
            self._merge(cache, mask, positions, logits)
        else:
            self._cache, self._mask, self._positions, self._logits = cache, mask, positions, logits
        self.rows += rows

    def scored(self, prompt: Sequence[int], num_tops: int) -> list[Given]:
        """Every token of a prompt but the first, under the model; nothing of the batch is touched."""
        tokens, mask = _padded([prompt], self.model.device)
        cache, found, before = self._new_cache(), list[Given](), torch.empty(0, device=self.model.device)
        for start in range(0, len(prompt), SCORED_AT_A_TIME):
            stop = min(start + SCORED_AT_A_TIME, len(prompt))
            positions = torch.arange(start, stop, device=tokens.device)[None]
            fields = {"attention_mask": mask[:, :stop], "position_ids": positions, "past_key_values": cache}
            logits = self.model(input_ids=tokens[:, start:stop], use_cache=True, **fields).logits[0].float()
            logits = torch.cat([before, logits]) if start else logits
            before = logits[-1:]  # foretells the first of the next piece
            found += _given(logits[:-1].log_softmax(-1), tokens[0, max(start, 1) : stop], num_tops)
        return found

    def step(self) -> list[tuple[Continuation, Sample]]:
        """Draws a token for every row; returns the rows that have ended, which are no longer in the batch."""
        chosen = self._drawn()
        ended: dict[int, Sample] = {}
        for number, row in enumerate(self.rows):
            sample = self._sample(row)
            if sample is not None:
                ended[number] = sample
        done = [(self.rows[number], sample) for number, sample in ended.items()]
        for row, _ in done:
            if row.speculating is not None:
                row.speculating.end()
        chosen = self._keep([number for number in range(len(self.rows)) if number not in ended], chosen)
        if self.rows:
            self._go_on(chosen)
        return done

    def _go_on(self, chosen: Tensor) -> None:
        """Logits after the tokens that were drawn."""
        if self._tree is not None:
            known = self._tree.follow(int(chosen[0]))
            if known is not None:
                self._logits = known
                return
            self._settle()
        proposals = [
            row.speculating.draft(row.wish.max_new_tokens - len(row.tokens) - 1 if len(self.rows) == 1 else 0)
            for row in self.rows
            if row.speculating is not None
        ]
        mask, self._positions = self._mask, self._positions + 1
        self._mask = torch.cat([mask, mask.new_ones(len(self.rows), 1)], -1)
        if not any(proposal.tokens for proposal in proposals):
            if self._observer is not None:
                self._observer.before_pass([row.tokens for row in self.rows])
            self._logits = self._forward(chosen[:, None], self._mask, self._positions, self._cache)
            return
        place = int(self._positions[0, 0])
        self._tree = read_tree(self.model, int(chosen[0]), proposals[0], mask[0], place, self._cache)
        self._logits = self._tree.logits[:1]

    def _settle(self) -> None:
        """Drops what was proposed and did not come: from then on the cache is that of the text alone."""
        if self._tree is not None:
            num = self._tree.keep(self._cache)
            self._mask = torch.cat([self._mask, self._mask.new_ones(1, num)], -1)
            self._positions = self._positions + num
            self._tree = None

    def drop(self, unwanted: Callable[[Continuation], bool]) -> None:
        """Takes rows out before their end."""
        staying = [number for number, row in enumerate(self.rows) if not unwanted(row)]
        if len(staying) < len(self.rows):
            self._logits = self._keep(staying, self._logits)

    def _keep(self, staying: list[int], beside: Tensor) -> Tensor:
        """Leaves these rows in the batch, and in a tensor beside it; the last ones take the places that are free."""
        if len(staying) == len(self.rows):
            return beside
        late = [number for number in staying if number >= len(staying)]
        early = set(staying)
        staying = [number if number in early else late.pop() for number in range(len(staying))]
        self.rows = [self.rows[number] for number in staying]
        if not staying:
            self._cache = self._tree = None
            return beside[:0]
        kept = torch.tensor(staying, device=self._mask.device)
        self._mask, self._positions = self._mask[kept], self._positions[kept]
        self._cache.batch_select_indices(kept)
        return beside[kept]

    def _drawn(self) -> Tensor:
        """The next token of every row, noted in the row with its log-probability."""
        groups: dict[Sampling, list[int]] = {}
        for number, row in enumerate(self.rows):
            groups.setdefault(row.wish.sampling, []).append(number)
        chosen = torch.zeros(len(self.rows), dtype=torch.long, device=self._logits.device)
        for sampling, numbers in groups.items():
            rows = [self.rows[number] for number in numbers]
            logprobs = warped(self._logits if len(groups) == 1 else self._logits[numbers], sampling)
            tokens = drawn(logprobs, [row.random.random() for row in rows], sampling)
            said = logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
            for row, token, logprob in zip(rows, tokens.tolist(), said, strict=True):
                row.tokens.append(token)
                row.logprobs.append(logprob)
                if row.speculating is not None:
                    row.speculating.extend([token])
            chosen[numbers] = tokens
        self._note(chosen)
        return chosen

    def _note(self, chosen: Tensor) -> None:
        """Log-probabilities of the model itself, for the rows that want them."""
        numbers = [number for number, row in enumerate(self.rows) if row.wish.num_tops is not None]
        if not numbers:
            return
        most = max(self.rows[number].wish.num_tops or 0 for number in numbers)
        logprobs = self._logits[numbers].float().log_softmax(-1)
        own = logprobs.gather(-1, chosen[numbers][:, None])[:, 0].tolist()
        tops = logprobs.topk(min(most, logprobs.shape[-1]), -1)
        for number, logprob, ids, values in zip(numbers, own, tops.indices.tolist(), tops.values.tolist(), strict=True):
            row = self.rows[number]
            wanted = row.wish.num_tops
            row.noted.append(Noted(logprob, tuple(zip(ids[:wanted], values[:wanted], strict=True))))

    def _merge(self, cache: Any, mask: Tensor, positions: Tensor, logits: Tensor) -> None:
        """Puts new rows under those of the batch, all ending in the last column."""
        blank = int(self._mask.argmax(-1).min())  # columns that were a prompt's that has left
        width = max(self._mask.shape[-1] - blank, mask.shape[-1])
        for mine, new in zip(self._cache.layers, cache.layers, strict=True):
            mine.add_rows(new, blank=blank)
        old, new = self._mask[:, blank:, None], mask[:, :, None]
        self._mask = torch.cat([_wide(old, width), _wide(new, width)])[:, :, 0]
        self._positions = torch.cat([self._positions, positions])
        self._logits = torch.cat([self._logits, logits])

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits of the token after the last, (rows, vocabulary)."""
        output = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _sample(self, row: Continuation) -> Sample | None:
        """The sample of a row that has ended, or None."""
        wish = row.wish
        at_end = row.tokens[-1] in wish.ends
        cut = self._cut(row) if wish.stop and not at_end else None
        if not at_end and cut is None and len(row.tokens) < wish.max_new_tokens:
            return None
        text = self._text(row.tokens) if cut is None else cut
        return Sample(text, row.tokens, row.logprobs, "stop" if at_end or cut is not None else "length")

    def _cut(self, row: Continuation) -> str | None:
        """The text before the first stop string, where there is one."""
        stop = row.wish.stop
        window = max(map(len, stop)) * 4 + 8  # a character has at most four bytes, each a token at most
        if not any(word in self._text(row.tokens[-window:]) for word in stop):
            return None
        text = self._text(row.tokens)
        places = [text.index(word) for word in stop if word in text]
        return text[: min(places)] if places else None

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Of the model's generation config and the tokenizer."""
    config = model.generation_config
    of_model = config.eos_token_id if config is not None else None
    found = of_model if isinstance(of_model, list) else [of_model]
    return frozenset(int(end) for end in [*found, tokenizer.eos_token_id] if isinstance(end, int))


def _given(logprobs: Tensor, tokens: Tensor, num_tops: int) -> list[Given]:
    """(tokens, vocabulary) and the tokens that stand there."""
    own = logprobs.gather(-1, tokens[:, None])
    ranks = (logprobs > own).sum(-1) + 1
    tops = logprobs.topk(min(num_tops, logprobs.shape[-1]), -1)
    columns = (own[:, 0], tops.indices, tops.values, tokens, ranks)
    return [
        Given(logprob, tuple(zip(ids, values, strict=True)), token, rank)
        for logprob, ids, values, token, rank in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _read_together(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Which prompts share a forward pass, the longest first: none is padded to twice its length."""
    together: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        longest = lengths[together[0]] if together else 0
        if together and ((len(together) + 1) * longest > READ_AT_A_TIME or 2 * lengths[number] < longest):
            yield together
            together = []
        together.append(number)
    yield together


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of one width, padded on the left, and which tokens are theirs."""
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for number, prompt in enumerate(prompts):
        tokens[number, width - len(prompt) :] = torch.tensor(prompt)
        mask[number, width - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def _wide(kept: Tensor, width: int) -> Tensor:
    """(..., columns, depth) with zeros before the first column."""
    return torch.nn.functional.pad(kept, (0, 0, width - kept.shape[-2], 0))
