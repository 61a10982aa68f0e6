"""What a model says to the beginnings of texts and chats, and its states there: what a draft is trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from burnish.arch import Head, layers
from burnish.core.checkpoint import text_digest
from burnish.core.errors import DataError
from burnish.core.store import Store
from burnish.data import rows_of
from burnish.data.packing import Document, documents
from burnish.generate import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from burnish.core.progress import Progress
    from burnish.distill.stage import Speculator

TOGETHER = 64
"""Answers of an entry; what is lost with a killed run."""
ARRAYS = ("states", "last", "log_normaliser", "likeliest")


@dataclass(frozen=True)
class OwnAnswer:
    """A text of the model: its prompt, then what it says, from `start` on."""

    tokens: list[int]
    start: int


def prompts_of(settings: Speculator, tokenizer: PreTrainedTokenizerBase, data: Any) -> list[list[int]]:
    """The beginnings that the model goes on with, spread over the data.

    Raises:
        DataError: fewer than two.
    """
    found: list[list[int]] = []
    for document in documents(tokenizer, rows_of(data)):
        found += _beginnings(settings, document)
    if len(found) < 2:
        what = f"{len(found)} beginnings of texts or chats, and 2 are needed"
        raise DataError(what, where="data", fix="give more or longer texts, or raise context")
    number = min(settings.answers, len(found))
    return [found[index * len(found) // number] for index in range(number)]


def _beginnings(settings: Speculator, document: Document) -> Iterator[list[int]]:
    """Of a chat what comes before its last answer; of a text the first tokens of every piece."""
    if document.is_chat:
        silent = (~document.supervised).nonzero()[0]
        prompt = document.tokens[: int(silent[silent < document.supervised.nonzero()[0][-1]][-1]) + 1]
        if len(prompt) + settings.answer_tokens <= settings.context:
            yield prompt.tolist()
        return
    piece = settings.prompt_tokens + settings.answer_tokens
    for first in range(0, len(document.tokens), piece):
        if first + settings.prompt_tokens < len(document.tokens):
            yield document.tokens[first : first + settings.prompt_tokens].tolist()


@dataclass(frozen=True)
class KeptAnswers:
    """Where answers are kept.

    Attributes:
        place: a directory.
        key: what they depend on beside prompts and sampling: the model.
    """

    place: Path
    key: dict[str, Any]


def answered(
    settings: Speculator,
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    kept: KeptAnswers,
    progress: Progress,
) -> list[OwnAnswer]:
    """The model's answers, kept `TOGETHER` at a time, so that who was stopped goes on."""
    options: dict[str, Any] = {"max_new_tokens": settings.answer_tokens, "temperature": settings.temperature}
    key = kept.key | {"prompts": text_digest(prompts), "seed": settings.seed} | options
    store, found = Store(kept.place / text_digest(key)[:16]), list[OwnAnswer]()
    with progress.task("the model's answers", total=len(prompts), unit="answers") as task:
        for first in range(0, len(prompts), TOGETHER):
            name, own = f"part{first}", prompts[first : first + TOGETHER]
            if store.find(name, key) is None:
                seeds = [f"{settings.seed} {number}" for number in range(first, first + len(own))]
                samples = generate(module, tokenizer, own, seed=seeds, **options)
                with store.writing(name, key) as path:
                    (path / "tokens.json").write_text(json.dumps([sample.tokens for sample in samples]))
            said = json.loads((store.open(name, key) / "tokens.json").read_text())
            found += [OwnAnswer(prompt + tokens, len(prompt)) for prompt, tokens in zip(own, said, strict=True)]
            task.advance(len(own))
    return found


def keep_states(module: PreTrainedModel, numbers: Sequence[int]) -> tuple[list[Tensor], list[RemovableHandle]]:
    """A list that after every forward pass holds the outputs of these layers, counted from 1, until the hooks go."""
    seen: list[Tensor] = [torch.empty(0)] * len(numbers)
    own = [layer for _, layer in layers(module)]

    def keeping(place: int) -> Any:
        def keep(layer: Any, arguments: Any, output: Any) -> None:
            seen[place] = output[0] if isinstance(output, tuple) else output

        return keep

    return seen, [own[number - 1].register_forward_hook(keeping(place)) for place, number in enumerate(numbers)]


@contextmanager
def states_of(module: PreTrainedModel, numbers: Sequence[int]) -> Iterator[list[Tensor]]:
    """`keep_states` inside the block."""
    seen, handles = keep_states(module, numbers)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class TaughtAnswers:
    """Rows for the training loop: answers with what the model computed at each of their tokens.

    Attributes:
        answers: the texts.
        first: where each begins in the arrays below.
        states: (tokens, joined) outputs of the chosen layers.
        last: (tokens, hidden) what the model's head takes.
        log_normaliser: (tokens) of the model's logits, in nats.
        likeliest: (tokens) the token with the largest logit.
    """

    answers: Sequence[OwnAnswer]
    first: Sequence[int]
    states: np.ndarray
    last: np.ndarray
    log_normaliser: np.ndarray
    likeliest: np.ndarray

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def hash(self) -> str:
        return text_digest([[answer.tokens, answer.start] for answer in self.answers])

    def take(self, rows: list[int]) -> dict[str, Tensor]:
        """A batch of `ARRAYS`, `input_ids` and `counts`, positions that say a token of the answer; padded behind."""
        length = max(len(self.answers[row].tokens) for row in rows)
        batch = {
            "input_ids": torch.zeros(len(rows), length, dtype=torch.long),
            "states": torch.zeros(len(rows), length, self.states.shape[1]),
            "last": torch.zeros(len(rows), length, self.last.shape[1]),
            "log_normaliser": torch.zeros(len(rows), length),
            "likeliest": torch.zeros(len(rows), length, dtype=torch.long),
            "counts": torch.zeros(len(rows), length, dtype=torch.bool),
        }
        for place, row in enumerate(rows):
            answer, own = self.answers[row], slice(self.first[row], self.first[row] + len(self.answers[row].tokens))
            end = len(answer.tokens)
            batch["input_ids"][place, :end] = torch.tensor(answer.tokens)
            for name in ARRAYS:
                batch[name][place, :end] = torch.from_numpy(getattr(self, name)[own].copy())
            batch["counts"][place, answer.start - 1 : end] = True
        return batch

    def split(self, count: int) -> tuple[TaughtAnswers, TaughtAnswers]:
        """The first answers, and the last `count` of them."""
        cut = len(self) - count
        parts = (slice(0, cut), slice(cut, None))
        early, late = (replace(self, answers=self.answers[part], first=self.first[part]) for part in parts)
        return early, late


@torch.inference_mode()
def taught(
    module: PreTrainedModel, head: Head, answers: Sequence[OwnAnswer], numbers: Sequence[int], progress: Progress
) -> TaughtAnswers:
    """One forward pass over every answer.

    Args:
        module: the model, on its device.
        head: of it.
        answers: what it has said.
        numbers: of the layers whose output is kept.
        progress: for a bar.
    """
    hidden, device = head.linear.in_features, module.device
    first = np.cumsum([0, *(len(answer.tokens) for answer in answers)]).tolist()
    states = np.empty((first[-1], hidden * len(numbers)), np.float32)
    last, log_normaliser = np.empty((first[-1], hidden), np.float32), np.empty(first[-1], np.float32)
    likeliest = np.empty(first[-1], np.int64)
    with states_of(module, numbers) as seen, progress.task("the model's states", len(answers), "answers") as task:
        for begin, answer in zip(first, answers, strict=False):
            own = slice(begin, begin + len(answer.tokens))
            tokens = torch.tensor([answer.tokens], device=device)
            _, found = head.last_hidden(module, input_ids=tokens, use_cache=False)
            states[own] = torch.cat(seen, -1)[0].float().cpu().numpy()
            last[own] = found[0].float().cpu().numpy()
            logits = head.logits(found[0]).float()
            log_normaliser[own] = logits.logsumexp(-1).cpu().numpy()
            likeliest[own] = logits.argmax(-1).cpu().numpy()
            task.advance()
    return TaughtAnswers(answers, first[:-1], states, last, log_normaliser, likeliest)
