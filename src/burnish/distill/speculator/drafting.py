"""A draft in `burnish.generate`: before each pass it proposes a chain of tokens, which the pass checks.

The draft reads the model's own states, which pass by while the model reads: hooks on its layers keep those of the last
pass. A continuation takes them up only where the tokens of that pass are its own next ones; where several continuations
shared a pass, or another one's came between, its states are gone, and it goes on without proposals. Texts do not depend
on any of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.distill.speculator.answers import keep_states
from burnish.distill.speculator.network import DraftCache
from burnish.serve.speculate import Draft
from burnish.serve.speculate.memory import Counts

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.distill.speculator.draft import EagleDraft


class Drafting:
    """A proposer for `generate` and `Engine`, as `burnish.serve.speculate.Lookahead` is.

    Args:
        model: that verifies.
        draft: of it.
        length: tokens that are proposed at a time.

    Raises:
        CheckpointError: it is no draft of this model.
        SettingsError: a length below 1.
    """

    def __init__(self, model: Model, draft: EagleDraft, *, length: int = 3) -> None:
        if length < 1:
            raise SettingsError(f"is {length}, but 1 or more is needed", where="length")
        draft.check(model)
        module = model.module
        self.length, self.counts = length, Counts()
        self.network = draft.network.to(module.device).eval()
        self.embed: Any = module.get_input_embeddings()
        self.tokens = draft.tokens.to(module.device)
        self.read: Tensor | None = None
        self._states, self._hooks = keep_states(module, draft.hidden_layers)

        def begins(module: Any, arguments: Any, fields: dict[str, Any]) -> None:
            tokens = fields.get("input_ids")
            self.read = tokens[0] if tokens is not None and len(tokens) == 1 else None

        self._hooks.append(module.register_forward_pre_hook(begins, with_kwargs=True))

    def close(self) -> None:
        """Takes the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def begin(self, prompt: Sequence[int]) -> DraftingRequest:
        """A continuation, after its prompt."""
        return DraftingRequest(self, prompt)

    def passed(self, tokens: Sequence[int]) -> Tensor | None:
        """The states (tokens, joined) of the last pass, where it began with these tokens; else None."""
        if self.read is None or self.read[: len(tokens)].tolist() != list(tokens):
            return None
        return torch.cat(self._states, -1)[0, : len(tokens)].float()


class DraftingRequest:
    """A continuation.

    Args:
        drafting: of all.
        prompt: its tokens.
    """

    def __init__(self, drafting: Drafting, prompt: Sequence[int]) -> None:
        self._drafting, self._text, self._first = drafting, list(prompt), len(prompt)
        self._cache, self._lost = DraftCache(), False

    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that are certain."""
        begins = bool(tokens) and len(self._text) == self._first  # the first one the prompt's own pass gives
        self._drafting.counts.tokens += len(tokens) - begins
        self._text += tokens

    @torch.inference_mode()
    def draft(self, most: int | None = None) -> Draft:
        """A chain of what may come.

        Args:
            most: tokens, where fewer than usual are wanted.
        """
        own = self._drafting
        length = own.length if most is None else min(most, own.length)
        own.counts.drafts += 1
        hidden = self._caught_up()
        if hidden is None or length < 1:
            return Draft()
        network, known = own.network, self._cache.length
        chosen: list[int] = []
        while True:
            token = own.tokens[network.logits(hidden[:, -1]).argmax(-1)]
            chosen.append(int(token))
            if len(chosen) == length:
                break
            hidden = network.read(hidden[:, -1:], own.embed(token[None]).float(), self._cache)
        self._cache.cut(known)
        own.counts.drafted += length
        return Draft(chosen, list(range(-1, length - 1)))

    def end(self) -> None:
        """Nothing of it is remembered."""

    def _caught_up(self) -> Tensor | None:
        """The draft's state after the text, whose last token the model has not read; None where states are missing."""
        begin, end = self._cache.length, len(self._text) - 1
        states = None if self._lost or end <= begin else self._drafting.passed(self._text[begin:end])
        if states is None:
            self._lost = True
            return None
        own = self._drafting
        following = torch.tensor([self._text[begin + 1 :]], device=states.device)
        return own.network.read(own.network.fc(states[None]), own.embed(following).float(), self._cache)
