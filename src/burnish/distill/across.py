"""Distillation from a teacher with another tokenizer, as a loss over the student's batches.

    loss = AcrossTokenizers(teacher, student_tokenizer, teacher_tokenizer)

Every piece of a batch is written out as text and cut anew by the teacher's tokenizer, beginning as its texts begin.
Where both tokenizers cut, a stretch ends, and `burnish.distill.maths.universal` compares what both predict for it.
A stretch counts once for each of its student tokens, and only where all of them count. Special tokens are no text: the
teacher does not see the student's, and the end of a text is learned by cross-entropy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from burnish.arch import AllLogits, Head
from burnish.core.errors import SettingsError
from burnish.data.packing import IGNORED, pieces
from burnish.distill.maths.universal import likelihood, ranked, shared_and_ranked, stretches
from burnish.distill.on_policy import SAMPLED
from burnish.generate.speech import Speech
from burnish.train.losses import Batch, Loss, balanced, model_inputs
from burnish.train.maths.stretches import in_stretches, tokens_at_once, wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from burnish.core.checkpoint import Model

Comparison = Literal["alm", "uld", "gold"]


@dataclass(frozen=True)
class Side:
    """The tokens of all stretches in one of the models, one after the other.

    Attributes:
        rows, positions: what predicts each token.
        tokens: their numbers.
        stretch: which stretch each belongs to.
        last: of each stretch, the place of its last token here.
    """

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    stretch: Tensor
    last: Tensor

    @classmethod
    def of(cls, found: Sequence[Sequence[tuple[int, int, int]]], device: torch.device) -> Side:
        """From (row, position, token) of every token of every stretch."""
        flat = torch.tensor([token for one in found for token in one], dtype=torch.long).view(-1, 3).to(device)
        sizes = torch.tensor([len(one) for one in found], device=device)
        rows, positions, tokens = flat.T
        return cls(
            rows,
            positions,
            tokens,
            torch.arange(len(sizes), device=device).repeat_interleave(sizes),
            sizes.cumsum(0) - 1,
        )

    def whole(self, said: Tensor) -> Tensor:
        """The log-probability of each stretch, from that of every token."""
        return said.new_zeros(len(self.last)).index_add(0, self.stretch, said)

    def before_last(self, said: Tensor) -> Tensor:
        """The log-probability of all tokens of each stretch but the last."""
        return self.whole(said) - said[self.last]


@dataclass
class AcrossTokenizers:
    """A `LossFn` that holds its teacher, which may have any fast tokenizer.

    Attributes:
        teacher: in evaluation mode, on the student's device.
        tokenizer, teacher_tokenizer: of both.
        comparison: `alm` compares how likely a stretch is; `uld` ranks all probabilities of its last token; `gold`
            compares those of shared tokens by name and ranks the rest.
        shared: numbers of the shared tokens in both vocabularies, for `gold`.
        temperature: of both.
        beta: of `gold`.
        alpha: share of the comparison; the rest is cross-entropy on the text.
        balance: coefficient of the student's own load-balancing loss.
        head, teacher_head: of the models that are called.
    """

    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    teacher_tokenizer: PreTrainedTokenizerBase
    comparison: Comparison = "alm"
    shared: tuple[Tensor, Tensor] | None = None
    temperature: float = 1.0
    beta: float = 0.5
    alpha: float = 0.9
    balance: float = 0.0
    head: Head | AllLogits = field(default_factory=AllLogits)
    teacher_head: Head | AllLogits = field(default_factory=AllLogits)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The sum over tokens that count, and their number; `aligned` is the share that lies in a stretch."""
        targets, device = batch["targets"], batch["targets"].device
        mask = targets != IGNORED
        routers = {"output_router_logits": True} if self.balance else {}
        output, states = self.head.last_hidden(model, **model_inputs(batch), **routers)
        at_once = tokens_at_once(device, output.logits.shape[-1])
        cross, said = in_stretches(self._said, (states[mask], targets[mask]), at_once)
        divergence = torch.zeros_like(cross)
        ids, found = self.cut_anew(batch)
        if found:
            ours, theirs = (Side.of([pair[side] for pair in found], device) for side in (0, 1))
            counted = (mask.flatten().cumsum(0) - 1)[ours.rows * mask.shape[1] + ours.positions]
            values = self._compared(states, ours, said[counted], ids, theirs, at_once)
            divergence = divergence.index_add(0, counted, values[ours.stretch])
        on_text = cross if SAMPLED not in batch else cross * ~batch[SAMPLED][mask]
        loss = Loss(
            (self.alpha * divergence + (1 - self.alpha) * on_text).sum(),
            mask.sum().to(cross.dtype),
            {
                "divergence": divergence.detach().sum(),
                "cross_entropy": cross.detach().sum(),
                "aligned": torch.tensor(float(sum(len(one) for one, _ in found)), device=device),
            },
        )
        return balanced(loss, output, self.balance) if self.balance else loss

    def _compared(self, states: Tensor, ours: Side, said: Tensor, ids: Tensor, theirs: Side, at_once: int) -> Tensor:
        """A value for each stretch."""
        with torch.no_grad():
            _, others = self.teacher_head.last_hidden(self.teacher, input_ids=ids, use_cache=False)
            others = others[theirs.rows, theirs.positions]
            (known,) = in_stretches(self._known, (others, theirs.tokens), at_once)
        if self.comparison == "alm":
            return likelihood(ours.whole(said), theirs.whole(known), self.temperature)
        mine = states[ours.rows, ours.positions][ours.last]
        given = (mine, ours.before_last(said), others[theirs.last], theirs.before_last(known))
        return in_stretches(self._values, given, at_once)[0]

    @property
    def _of_tokens(self) -> float:
        """The temperature of tokens; that of `alm` is of whole stretches."""
        return 1.0 if self.comparison == "alm" else self.temperature

    def _said(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the student, and the log-probability of the same token at the temperature."""
        logits = wide(self.head.logits(states))
        cross = nn.functional.cross_entropy(logits, targets, reduction="none")
        return cross, -nn.functional.cross_entropy(logits / self._of_tokens, targets, reduction="none")

    def _known(self, states: Tensor, tokens: Tensor) -> tuple[Tensor]:
        logits = wide(self.teacher_head.logits(states)) / self._of_tokens
        return (-nn.functional.cross_entropy(logits, tokens, reduction="none"),)

    def _values(self, mine: Tensor, before: Tensor, others: Tensor, before_there: Tensor) -> tuple[Tensor]:
        student = (wide(self.head.logits(mine)) / self.temperature).log_softmax(-1) + before[:, None]
        with torch.no_grad():
            logits = wide(self.teacher_head.logits(others)) / self.temperature
            teacher = logits.log_softmax(-1) + before_there[:, None]
        if self.shared is None:
            return (ranked(student, teacher),)
        ours, theirs = (numbers.to(student.device) for numbers in self.shared)
        return (shared_and_ranked(student, teacher, ours, theirs, self.beta),)

    def cut_anew(self, batch: Batch) -> tuple[Tensor, list[tuple[list[tuple[int, int, int]], ...]]]:
        """The teacher's token ids, a row a piece, and (row, position, token) of every stretch in both models."""
        targets, rows, found = batch["targets"].cpu(), list[list[int]](), list[tuple[list[tuple[int, int, int]], ...]]()
        inputs = batch["input_ids"].cpu()
        prefix = prefix_of(self.teacher_tokenizer)
        longest = getattr(self.teacher.config.get_text_config(), "max_position_embeddings", None)
        for row, start, last in pieces(batch):
            tokens = [*inputs[row, start : last + 1].tolist(), int(targets[row, last])]
            text, ends = text_ends(self.tokenizer, tokens)
            theirs, their_ends = token_ends(self.teacher_tokenizer, text)
            theirs = theirs[: None if longest is None else longest - len(prefix)]
            for ours, others in stretches(ends, their_ends[: len(theirs)]):
                here = [(row, start + place - 1, tokens[place]) for place in ours]
                there = [(len(rows), len(prefix) + place - 1, theirs[place]) for place in others]
                counts = ours[0] > 0 and all(int(targets[row, position]) != IGNORED for _, position, _ in here)
                if counts and there[0][1] >= 0:
                    found.append((here, there))
            rows.append([*prefix, *theirs] or [0])
        width = max(map(len, rows), default=1)
        padded = torch.tensor([[*one, *[0] * (width - len(one))] for one in rows], dtype=torch.long)
        return padded.to(batch["input_ids"].device), found


def prefix_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts in front of a text."""
    ids: list[int] = tokenizer("", add_special_tokens=True)["input_ids"]
    return [token for token in ids if token != tokenizer.eos_token_id or token == tokenizer.bos_token_id]


def text_ends(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> tuple[str, list[int]]:
    """The text of tokens without special ones, and how much of it each makes certain: a half character is not there."""

    def decode(some: list[int]) -> str:
        return str(tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    speech, text, ends = Speech(decode, ()), "", list[int]()
    for token in tokens:
        text += speech.add([token])
        ends.append(len(text))
    return text, ends


def token_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """The tokens of a text and where each ends; one that ends within a character ends before it."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans: list[tuple[int, int]] = encoded["offset_mapping"]
    starts = [*(start for start, _ in spans), len(text)][1:]
    ends, reached = list[int](), 0
    for (_, end), following in zip(spans, starts, strict=True):
        reached = max(reached, min(end, following) if following < end else end)
        ends.append(reached)
    return encoded["input_ids"], ends


def check_tokenizers(student: Model, teacher: Model, divergence: str) -> None:
    """Refuses what texts cannot go between.

    Raises:
        SettingsError: a model without a tokenizer, or a teacher's that does not say where its tokens end.
    """
    if not (student.has_tokenizer and teacher.has_tokenizer):
        what = f"one of the models has no tokenizer, and divergence {divergence} writes texts out"
        raise SettingsError(what, where="divergence", fix="use another divergence")
    if not teacher.tokenizer.is_fast:
        what = "the teacher has a slow tokenizer, which does not say where its tokens end"
        raise SettingsError(
            what, where="divergence", fix="convert it: AutoTokenizer.from_pretrained(..., use_fast=True)"
        )


def shared_tokens(student: Model, teacher: Model) -> tuple[Tensor, Tensor]:
    """Numbers in both vocabularies of the tokens that are spelled the same.

    Raises:
        SettingsError: there are none.
    """
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    rows = [model.config.get_text_config().vocab_size for model in (student, teacher)]
    both = [(ours[name], theirs[name]) for name in sorted(ours.keys() & theirs.keys(), key=ours.__getitem__)]
    both = [pair for pair in both if pair[0] < rows[0] and pair[1] < rows[1]]
    if not both:
        what = "no token of the teacher is spelled like one of the student, and divergence gold compares those by name"
        raise SettingsError(what, where="divergence", fix="use divergence alm")
    mine, other = torch.tensor(both, dtype=torch.long).T
    return mine, other
