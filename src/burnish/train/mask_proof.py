"""Whether a model really sees what masks and positions say, tried on it before the first step.

transformers reads masks out of position ids: without a mask a step in them is the border of packed documents, and a
view would silently become two documents. Which implementation of attention does what differs from version to version.
So nothing is believed: two packed documents of a few tokens go through the model, one token is changed, and the logits
must change where it is seen and nowhere else.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from burnish.core.errors import SettingsError
from burnish.train.maths.masks import document_numbers
from burnish.train.maths.positions import skip_positions
from burnish.train.objective import Objective
from burnish.train.views import attention_mask

EACH, GAP_AT, GAP, CHANGED, SHIFT = 12, 6, 9, 2, 5
"""Tokens of each of the two documents; the view's gap; the token of the first that is changed; a shift of all."""
SAME = 1e-4
"""Largest difference of logits that are the same but for rounding, against the largest logit. Rounding of angles grows
with positions; what one token among twelve changes is some hundred times as much."""


def prove(module: Any, objective: Objective, attention: str) -> None:
    """Raises where masks or positions do not do what the objective needs; the model is left as it was.

    Args:
        module: of transformers, in float32.
        objective: what will be asked of it.
        attention: what transformers calls the implementation in use.

    Raises:
        SettingsError: which of them, and what was seen.
    """
    _check_dropout(module)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _Trial(module, attention).run(objective)
    finally:
        module.train(was_training)


def _check_dropout(module: nn.Module) -> None:
    """Two passes with different dropout differ by that."""
    shares = {type(part).__name__: part.p for part in module.modules() if isinstance(part, nn.Dropout) and part.p}
    shares |= {
        type(part).__name__: part.attention_dropout
        for part in module.modules()
        if isinstance(getattr(part, "attention_dropout", None), float) and part.attention_dropout
    }
    if shares:
        name, share = next(iter(shares.items()))
        raise SettingsError(
            f"{name} drops {share:g} of its values, so that two passes would differ without any reason",
            where="objective",
            fix="set dropout to 0 in the model's config.json",
        )


class _Trial:
    def __init__(self, module: Any, attention: str) -> None:
        self.module, self.attention = module, attention
        device, vocab_size = module.get_input_embeddings().weight.device, module.config.get_text_config().vocab_size
        self.ids = (torch.arange(2 * EACH, device=device) * 7 + 3)[None] % vocab_size
        self.standard = torch.arange(EACH, device=device).repeat(2)[None]
        self.documents = document_numbers(self.standard)
        self.view = torch.cat([skip_positions(EACH, GAP_AT, GAP), torch.arange(EACH)])[None].to(device)

    def run(self, objective: Objective) -> None:
        whole = attention_mask(self.attention, self.documents)
        plain = self._logits(self.standard, None)
        self.scale = plain.abs().max()
        try:
            masked = self._logits(self.standard, whole)
        except (TypeError, ValueError, RuntimeError) as error:
            self._refuse(f"a mask of every pair of tokens cannot be given to it ({str(error).splitlines()[0]})")
        if self._moved(plain, masked).any():
            self._refuse("a mask given to the model hides something else than the one it makes of packed documents")
        if objective.view != "none":
            self._try_view(whole, plain)
        if objective.weights != "none":
            self._try_window()

    def _try_view(self, whole: Any, plain: Tensor) -> None:
        view, shifted = self._logits(self.view, whole), self._logits(self.standard + SHIFT, whole)
        if not self._moved(view, plain)[GAP_AT:EACH].any():
            self._refuse("other positions leave its logits as they are: it does not look at them")
        if self._moved(shifted, plain).any():
            self._refuse("its logits change when all positions are shifted, so that a view is more than distances")
        changed = self._moved(view, self._logits(self.view, whole, changed=CHANGED))
        if not changed[GAP_AT:EACH].any():
            self._refuse("a token before the gap of a view is not seen after it: the gap is taken for a border")
        if changed[EACH:].any():
            self._refuse("a token of a packed document changes the logits of its neighbour")

    def _try_window(self) -> None:
        """A window of one token and one sink: nothing but both is seen, through however many layers."""
        short = attention_mask(self.attention, self.documents, window=1, sinks=1)
        before = self._logits(self.standard, short)
        hidden = self._moved(before, self._logits(self.standard, short, changed=CHANGED))
        if hidden[CHANGED + 1 :].any():
            self._refuse("a token that is hidden by window and sinks changes the logits of later ones")
        if not self._moved(before, self._logits(self.standard, short, changed=0))[CHANGED:EACH].any():
            self._refuse("the first token of a document is not seen through window and sinks")

    def _logits(self, positions: Tensor, mask: Any, changed: int | None = None) -> Tensor:
        ids = self.ids.clone()
        if changed is not None:
            ids[0, changed] = (ids[0, changed] + 1) % self.module.config.get_text_config().vocab_size
        given = {} if mask is None else {"attention_mask": mask}
        return self.module(input_ids=ids, position_ids=positions, use_cache=False, **given).logits[0].float()

    def _moved(self, one: Tensor, other: Tensor) -> Tensor:
        """Which tokens have other logits, beyond rounding."""
        return (one - other).abs().amax(dim=-1) > SAME * self.scale

    def _refuse(self, what: str) -> NoReturn:
        raise SettingsError(
            f"{type(self.module).__name__} with attention {self.attention}: {what}",
            where="objective",
            fix="use another attention, or leave the objective out",
        )
