"""Proposed tokens, checked by one forward pass: several tokens for the price of one, and the text stays as it is.

A proposer says which tokens may come, as a tree. The tree is read after the last token that is certain, in one forward
pass in which each token sees the text, the tokens that lead to it in the tree, and itself: its logits are those it has
where the text went that way. Then tokens are drawn as ever, each from the logits of the token before it, with the same
random numbers. As long as the one that is drawn is in the tree, the next logits are there already; keys and values of
the others are dropped. So nothing is accepted or rejected by a rule of its own: greedy texts are equal, and drawn ones
as well, as far as rounding goes.

    text  a ── b ── c          a sees text a;  c sees text a b c;  e sees text d e
         └─ d ── e

Source: Lookahead: An Inference Acceleration Framework with Lossless Generation Accuracy, 2023, arXiv:2312.12728.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from burnish.core.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDING = 512
"""Units in the last place by which logits of a tree and of its branches may differ; another mask makes all of them."""


class Proposal(Protocol):
    """Tokens, each after its parent, and the place of each one's parent, -1 for those that follow the text."""

    @property
    def tokens(self) -> list[int]: ...
    @property
    def parents(self) -> list[int]: ...


class Speculating(Protocol):
    """One answer under way."""

    def extend(self, tokens: Sequence[int]) -> None: ...
    def draft(self, most: int | None = None) -> Proposal: ...
    def end(self) -> None: ...


class Proposer(Protocol):
    """What proposes, as `burnish.serve.speculate.Lookahead` does."""

    def begin(self, prompt: Sequence[int]) -> Speculating: ...


@dataclass
class Verified:
    """A tree whose logits are known, and how far along it the text has gone.

    Attributes:
        logits: (1 + tokens, vocabulary): after the last certain token, then after each of the tree.
        children: place by (place of the parent, token); the last certain token is place 0.
        path: places that the text has gone through.
        rows: width of the cache before the tree, its root included.
    """

    logits: Tensor
    children: dict[tuple[int, int], int]
    rows: int
    path: list[int] = field(default_factory=list)

    def follow(self, token: int) -> Tensor | None:
        """Logits (1, vocabulary) after a token of the tree; None where it is not in it."""
        place = self.children.get((self.path[-1] if self.path else 0, token))
        if place is None:
            return None
        self.path.append(place)
        return self.logits[place : place + 1]

    def keep(self, cache: Any) -> int:
        """Leaves in the cache what the text went through; returns how many tokens that is."""
        columns = torch.tensor([place - 1 for place in self.path], device=self.logits.device)
        for layer in cache.layers:
            layer.keep_columns(self.rows, columns)
        return len(self.path)


def children(proposal: Proposal) -> dict[tuple[int, int], int]:
    """Places in a tree by (place of the parent, token), counted from 1; of equal tokens the first."""
    found: dict[tuple[int, int], int] = {}
    for place, (token, parent) in enumerate(zip(proposal.tokens, proposal.parents, strict=True), start=1):
        found.setdefault((parent + 1, token), place)
    return found


def sight(parents: Sequence[int]) -> Tensor:
    """(1 + tokens, 1 + tokens): which places each place sees; the first is the root."""
    seen = torch.zeros(len(parents) + 1, len(parents) + 1, dtype=torch.bool)
    seen[0, 0] = True
    for place, parent in enumerate(parents, start=1):
        seen[place] = seen[parent + 1]
        seen[place, place] = True
    return seen


def read_tree(
    model: PreTrainedModel, token: int, proposal: Proposal, mask: Tensor, position: int, cache: Any
) -> Verified:
    """One forward pass over a token and the tree after it, which are then in the cache.

    Args:
        model: a causal model.
        token: the last certain one.
        proposal: the tree.
        mask: (columns), which of the cache's columns are the text's.
        position: of the token.
        cache: of rooms that can drop columns, of one row.
    """
    device, dtype = mask.device, model.dtype
    seen = sight(proposal.parents).to(device)
    width = len(seen)
    allowed = torch.cat([(mask != 0).expand(width, -1), seen], -1)
    blocked = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, torch.finfo(dtype).min)
    output = model(
        input_ids=torch.tensor([[token, *proposal.tokens]], device=device),
        attention_mask=blocked[None, None],
        position_ids=(position + seen.sum(-1) - 1)[None],
        past_key_values=cache,
        use_cache=True,
    )
    return Verified(output.logits[0], children(proposal), mask.shape[-1] + 1)


@dataclass(frozen=True)
class _Fork:
    """Two ways on, for the check below."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]


@torch.inference_mode()
def check_trees(model: PreTrainedModel) -> None:
    """Reads a small tree and both of its branches, and compares.

    Raises:
        SettingsError: the model keeps a state that tokens cannot be taken out of, or does not look at the mask of a
            tree: a kind of attention without masks, or positions that it makes itself.
    """
    from burnish.generate.cache import RoomyLayer, roomy

    where = type(model).__name__
    fix = "generate without speculation"
    kinds = {type(layer).__name__ for layer in roomy(model.config).layers if type(layer) is not RoomyLayer}
    if kinds:
        what = f"keeps a state that rejected tokens cannot be taken out of ({', '.join(sorted(kinds))})"
        raise SettingsError(what, where=where, fix=fix)
    vocabulary = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
    text = [(7 * place + 3) % vocabulary for place in range(7)]
    first, last = text[:3], text[3]
    fork = _Fork((text[4], text[5], text[6], text[1]), (-1, 0, -1, 2))
    cache, device = roomy(model.config), model.device
    model(input_ids=torch.tensor([first], device=device), past_key_values=cache, use_cache=True)
    ones = torch.ones(len(first), device=device)
    found = read_tree(model, last, cast(Any, fork), ones, len(first), cache).logits
    branches = [[*first, last, text[4], text[5]], [*first, last, text[6], text[1]]]
    wanted = model(input_ids=torch.tensor(branches, device=device)).logits[:, -1]
    error = float((found[[2, 4]] - wanted).abs().max() / wanted.abs().max())
    if not error <= ROUNDING * torch.finfo(model.dtype).eps:
        what = f"reads a tree of tokens in another way than its branches (logits differ by {error:.2g} of the largest)"
        raise SettingsError(what, where=where, fix=fix)
