"""On-policy distillation: the student writes, the teacher says what it would have predicted there.

    loss = OnPolicy(Distillation(teacher, divergence="reverse", alpha=1.0), student, tokenizer)

A student that is trained on texts alone never sees what its own mistakes lead to. Here a share of the pieces of a batch
keeps its beginning, and the student samples the rest, at most as many tokens as stood there; any loss over batches
then compares it with the teacher on what it has written. No gradient goes through the sampling.

Source: On-Policy Distillation of Language Models (2023, arXiv:2306.13649). What differs: the share is drawn for every
piece and not for a whole batch, and a continuation is never longer than what it replaces, so that a step costs as many
tokens as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from burnish.data.packing import IGNORED, pieces
from burnish.generate import generate
from burnish.train.losses import Batch, Loss, LossFn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLED = "sampled"
"""Key of a batch: positions whose target the student drew. Cross-entropy on them would only confirm it."""
LARGEST_SEED = 2**62


@dataclass(frozen=True)
class Gap:
    """Where a continuation is written.

    Attributes:
        row: of the batch.
        start: of the piece.
        first, last: positions that predict the first token of the continuation and the last that there is room for.
    """

    row: int
    start: int
    first: int
    last: int

    @property
    def room(self) -> int:
        """Most tokens."""
        return self.last - self.first + 1


@dataclass
class OnPolicy:
    """A `LossFn` that has the student write first. In evaluation mode texts stay as they are, so numbers compare.

    Attributes:
        loss: what is minimised on the batch that results.
        student: the model that samples, and that `loss` is called for (perhaps compiled or wrapped).
        tokenizer: of the student.
        share: of the pieces that the student continues, each drawn for itself.
        prompt_tokens: least tokens of a text that are kept; a chat is kept up to the last answer in any case.
        temperature: of the sampling.
        vocabulary: tokens, from the first on, that the teacher has too; another one ends a text. None for all.
    """

    loss: LossFn
    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    share: float = 1.0
    prompt_tokens: int = 16
    temperature: float = 1.0
    vocabulary: int | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The loss on texts that the student has continued; `sampled` is the share of counted tokens that it drew."""
        if not model.training:
            return self.loss(model, batch)
        written = self.written(batch)
        found = self.loss(model, written)
        return replace(found, metrics=found.metrics | {SAMPLED: written[SAMPLED].sum().to(found.total.dtype)})

    def written(self, batch: Batch) -> dict[str, Tensor]:
        """A copy of the batch with continuations by the student, and `sampled`.

        The loop seeds torch's generator anew for every step, so that a training that goes on draws what it would have.
        """
        found = [gap for gap in gaps(batch, self.prompt_tokens) if self._room(gap)]
        chosen = [gap for gap in found if torch.rand(()) < self.share]
        seed = int(torch.randint(LARGEST_SEED, ()))
        copied = {name: tensor.clone() for name, tensor in batch.items()}
        copied[SAMPLED] = torch.zeros_like(batch["targets"], dtype=torch.bool)
        if not chosen:
            return copied
        prompts = [batch["input_ids"][gap.row, gap.start : gap.first + 1].tolist() for gap in chosen]
        for gap, tokens in zip(chosen, self._drawn(prompts, [self._room(gap) for gap in chosen], seed), strict=True):
            put(copied, gap, tokens)
        return copied

    def _room(self, gap: Gap) -> int:
        """Most tokens; the last one that a full row predicts lies behind the positions that the model has."""
        longest = getattr(self.student.config.get_text_config(), "max_position_embeddings", None)
        before = gap.first + 1 - gap.start
        return gap.room if longest is None else min(gap.room, longest - before)

    def _drawn(self, prompts: list[list[int]], rooms: list[int], seed: int) -> list[list[int]]:
        was_training = self.student.training
        self.student.eval()
        samples = generate(
            self.student,
            self.tokenizer,
            prompts,
            max_new_tokens=rooms,
            temperature=self.temperature,
            seed=seed,
            batch_size=len(prompts),
        )
        self.student.train(was_training)
        # Weights that autocast keeps from here were made without a graph, and the loss needs them with one.
        torch.clear_autocast_cache()
        known = self.vocabulary or self.student.config.get_text_config().vocab_size
        return [list(takewhile(lambda token: token < known, sample.tokens)) for sample in samples]


def gaps(batch: Batch, prompt_tokens: int) -> Iterator[Gap]:
    """The end of every piece that is long enough: from its last run of counted tokens on, after the prompt at least."""
    counted = (batch["targets"] != IGNORED).cpu()
    for row, start, last in pieces(batch):
        silent = (~counted[row, start : last + 1]).nonzero()[:, 0]
        answer = start + int(silent[-1]) + 1 if len(silent) else start
        first = max(answer, start + prompt_tokens - 1)
        if first <= last:
            yield Gap(row, start, first, last)


def put(batch: dict[str, Tensor], gap: Gap, tokens: list[int]) -> None:
    """Writes a continuation into the gap; nothing else of its piece counts in the loss, and nothing behind its end."""
    stop = gap.first + len(tokens)
    new = torch.tensor(tokens, dtype=torch.long, device=batch["targets"].device)
    batch["targets"][gap.row, gap.start : gap.last + 1] = IGNORED
    batch["targets"][gap.row, gap.first : stop] = new
    inputs = nn.functional.pad(new, (0, gap.room - len(new)))[: gap.room - 1]  # of the last token nothing follows
    batch["input_ids"][gap.row, gap.first + 1 : gap.last + 1] = inputs
    batch[SAMPLED][gap.row, gap.first : stop] = True
