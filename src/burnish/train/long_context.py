"""The loss of a training for long contexts: tokens by what their context changes, and a second view of every document.

    L = sum_t w_t ce_t / N  +  view_weight mean over documents of KL(p_view || sg p)

    weights   one forward pass without a gradient, in which every token sees a window and the first tokens of its
              document alone; positions stay as they are. `burnish.train.maths.token_weights` makes w of both
              predictions.
    view      one more pass with a gradient, under other positions and the same causal mask.
              `burnish.train.maths.view_distillation`; or, with view_only, the next-token loss under these positions
              and no other pass (PoSE, 2023, arXiv:2309.10400)

Both are sums over documents and divided once a step by the loop, so that a step may be cut up anyhow. On held-out rows
the loss is the plain one.

Sources: see both modules of mathematics. What differs: the short context of every way to weigh is the same one pass
over window and sinks, where LongCE and its followers run the model again on overlapping pieces; a document's view
counts by the document's tokens, where the authors have one document in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from burnish.data.packing import IGNORED
from burnish.train.kept_weights import KeptWeights
from burnish.train.losses import COUNT, ROWS, STEP, Batch, HeadLoss, Loss, model_inputs
from burnish.train.maths.masks import places_within
from burnish.train.maths.stretches import in_stretches, tokens_at_once, wide
from burnish.train.maths.token_weights import Weighting, context_divergence, token_weights
from burnish.train.maths.view_distillation import view_divergence
from burnish.train.objective import Objective
from burnish.train.views import View, attention_mask, documents_of, drawn, has_view


@dataclass(frozen=True)
class LongContext:
    """A `LossFn`.

    Attributes:
        objective: view, weights, and their numbers.
        plain: the next-token loss that it changes.
        attention: what transformers calls the implementation in use.
        seed: of the views.
        kept: weights of earlier passes over the data, where the objective keeps them.
    """

    objective: Objective
    plain: HeadLoss
    attention: str = "sdpa"
    seed: int = 0
    kept: KeptWeights | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """Total and weight over the tokens whose target is not -100; the plain loss in evaluation mode."""
        if not model.training:
            return self.plain(model, batch)
        counts, documents = batch["targets"] != IGNORED, documents_of(batch)
        kept = self.kept if self.kept is not None and self.kept.reads(int(batch[STEP])) else None
        weighted = self.objective.weights != "none" and kept is None
        # Without a gradient first: under FSDP the weights of the training pass then stay for its backward pass.
        short = self._short(model, batch, documents)[counts] if weighted else None
        has_second = has_view(self.objective, self.seed, int(batch[STEP]))
        if has_second and self.objective.view_only:
            view = drawn(self.objective, batch, counts, self.seed)
            return self.plain.of(*self._under_view(model, batch, documents, view), batch)
        output, hidden = self.plain.run(model, batch)
        factors, metrics = None, dict[str, Tensor]()
        if short is not None:
            factors, metrics = self._factors(
                hidden[counts].detach(), short, batch["targets"][counts], documents, counts
            )
            if self.kept is not None:
                self.kept.write(batch[ROWS].tolist(), counts, factors)
        elif kept is not None:
            factors = kept.read(batch[ROWS].tolist(), counts)
        loss = self.plain.of(output, hidden, batch, factors)
        total = loss.total
        if has_second:
            added, divergence = self._view(model, batch, documents, hidden.detach(), counts)
            total, metrics = total + self.objective.view_weight * added, metrics | divergence
        return Loss(total, loss.weight, loss.metrics | metrics)

    # -- weights -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _short(self, model: nn.Module, batch: Batch, documents: Tensor) -> Tensor:
        """Hidden states under the short context; the generators are afterwards as they were."""
        mask = attention_mask(self.attention, documents, self.objective.window, self.objective.sinks)
        devices = [documents.device] if documents.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            return self.plain.head.last_hidden(model, **model_inputs(batch), attention_mask=mask)[1]

    @torch.no_grad()
    def _factors(
        self, hidden: Tensor, short: Tensor, targets: Tensor, documents: Tensor, counts: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weights of the tokens that count, with the mean gain and divergence of those beyond the first window."""
        how = self.objective.weighting
        compared = in_stretches(
            lambda *part: self._compared(how, *part),
            (hidden, short, targets),
            tokens_at_once(hidden.device, self.plain.head.linear.out_features),
        )
        long_losses, short_losses, divergences = compared
        in_prefix = places_within(documents)[counts] < self.objective.window + self.objective.sinks
        # Documents of different rows are different ones.
        numbers = documents + documents.shape[1] * torch.arange(len(documents), device=documents.device)[:, None]
        _, numbers = numbers[counts].unique(return_inverse=True)
        weights = token_weights(how, long_losses, short_losses, divergences, numbers, in_prefix)
        beyond = (~in_prefix).to(weights.dtype)
        metrics = {"context_gain": (short_losses - long_losses) @ beyond}
        if how.mode in ("kl", "js"):
            metrics["context_divergence"] = divergences @ beyond
        return weights, metrics | {name + COUNT: beyond.sum() for name in metrics}

    def _compared(
        self, how: Weighting, hidden: Tensor, short: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses with the whole and the short context, and how far the predictions are apart (0 where not asked)."""
        long_logits, short_logits = (wide(self.plain.head.logits(states)) for states in (hidden, short))
        long_losses = nn.functional.cross_entropy(long_logits, targets, reduction="none")
        short_losses = nn.functional.cross_entropy(short_logits, targets, reduction="none")
        if how.mode in ("kl", "js"):
            return long_losses, short_losses, context_divergence(long_logits, short_logits, how.mode)
        return long_losses, short_losses, torch.zeros_like(long_losses)

    # -- the view ----------------------------------------------------------------------------------------------------

    def _view(
        self, model: nn.Module, batch: Batch, documents: Tensor, standard: Tensor, counts: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over documents of the view's mean divergence times the document's tokens, and the plain sum."""
        view = drawn(self.objective, batch, counts, self.seed)
        hidden = self._under_view(model, batch, documents, view)[1]
        behind = view.shares > 0
        head = self.plain.head
        (each,) = in_stretches(
            lambda ours, theirs: (view_divergence(wide(head.logits(ours)), wide(head.logits(theirs).detach())),),
            (hidden[behind], standard[behind]),
            tokens_at_once(hidden.device, head.linear.out_features),
        )
        name = "view_divergence"
        metrics = {name: each.detach().sum(), name + COUNT: behind.sum().to(each.dtype)}
        return each @ view.shares[behind].to(each.dtype), metrics

    def _under_view(self, model: nn.Module, batch: Batch, documents: Tensor, view: View) -> tuple[Any, Tensor]:
        """The model's output and hidden states under other positions, and the mask of the order of tokens."""
        inputs: dict[str, Any] = model_inputs(batch) | {"position_ids": view.position_ids}
        return self.plain.head.last_hidden(model, **inputs, attention_mask=attention_mask(self.attention, documents))
