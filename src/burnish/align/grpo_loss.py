"""The loss of GRPO whose old log-probabilities are those of who drew: TRL's trainer with `_compute_loss` replaced.

    loss = sum over tokens of share(factor * policy loss(log p - log p_old, A))

Rows without advantage are not forwarded, rows are forwarded padded or packed, and every number is of the whole step:
its denominator is known before the first pass, and what is reported is over all tokens that its passes have forwarded.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from accelerate.utils import gather
from torch import Tensor
from trl import GRPOTrainer

from burnish.align.grpo_config import NORMALISERS, SampledGRPOConfig
from burnish.align.maths import policy_loss
from burnish.align.maths.reduction import Normaliser, share
from burnish.align.passes import Batch, PackedPass, SharedPass, check_packing, chosen
from burnish.core.errors import NumericalError, SettingsError

PROXIMAL = "proximal_per_token_logps"
"""Column of the learner's own log-probabilities from when it first saw an answer."""


class StepLossTrainer(GRPOTrainer):
    """GRPO with the losses and the one denominator of a step of `burnish.align.maths`."""

    args: SampledGRPOConfig
    forwarded_rows: int = 0
    left_out_rows: int = 0
    _noted: tuple[Tensor, ...] = ()
    _proved: bool = False

    @property
    def mode(self) -> Literal["train", "eval"]:
        """What TRL's metrics are filed under."""
        policy: Any = self.model
        return "train" if policy.training else "eval"

    @property
    def longest(self) -> int:
        """Tokens that an answer may have."""
        return int(self.args.max_completion_length or 0)

    def over_all(self, number: int) -> int:
        """A number of this process, summed over all of them."""
        return int(cast(Tensor, gather(torch.tensor([number], device=self.accelerator.device))).sum())

    @property
    def _skips(self) -> bool:
        """Whether rows without advantage are not forwarded; the divergence to a reference would move them too."""
        return self.args.skip_unmoved and not self.beta

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        if self.aux_loss_enabled:
            raise SettingsError("a mixture of experts needs its balancing loss, which this loss has not", where="model")
        mask = inputs["completion_mask"]
        mask = (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).float()
        advantages = inputs["advantages"]
        advantages = (advantages if advantages.dim() == 2 else advantages[:, None]).expand_as(mask) * (mask > 0)
        rows = self._forwarded(advantages, mask)
        part, width = chosen(inputs, rows, mask)
        logps, entropy, cells = self._predicted(model, part, width)
        weight, gain = mask[rows, :width], advantages[rows, :width]
        to_who_drew = (logps - part["old_per_token_logps"]) * weight
        log_ratio, factor, cut_off = self._corrected(logps, to_who_drew, weight, self._own_before(inputs, logps, rows))
        loss = self._token_loss(logps, log_ratio, gain, weight) * factor
        if self.beta:
            loss = loss + self.beta * policy_loss.divergence(logps, part["ref_per_token_logps"])
        normaliser = NORMALISERS[self.loss_type]
        clip = policy_loss.is_clipped(log_ratio.detach(), gain, self.epsilon_low, self.epsilon_high)
        real = int(part["prompt_mask"].sum() + part["completion_mask"].sum())
        self._note(to_who_drew.detach(), entropy.detach(), clip, cut_off, weight > 0, (real, cells))
        return share(loss, weight, self._denominator(inputs, len(mask), normaliser), normaliser)

    def _predicted(self, model: Any, part: Batch, width: int) -> tuple[Tensor, Tensor, int]:
        """Log-probabilities of completions, entropies of their predictions, and how many places were forwarded."""
        if self.args.packing:
            kind, module = SharedPass if self.args.share_prefixes else PackedPass, self.accelerator.unwrap_model(model)
            if not self._proved:
                check_packing(module, kind)
                self._proved = True
            packed = kind(part, width, cast(Any, self._tokenizer).pad_token_id)
            given = packed.model_inputs(module.config.get_text_config()._attn_implementation)
            with self.accelerator.autocast():
                found = model(**given, shift_labels=packed.labels, fused_lm_head=True)
            return packed.by_row(found.log_probs), packed.by_row(found.entropy), packed.input_ids.numel()
        ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
        mask = torch.cat([part["prompt_mask"], part["completion_mask"]], 1)
        logps, entropy, _ = self._get_per_token_logps_and_entropies(model, ids, mask, width, compute_entropy=True)
        assert entropy is not None, "it was asked for"
        return logps, entropy, ids.numel()

    def _own_before(self, inputs: Batch, logps: Tensor, rows: Tensor) -> Tensor | None:
        """The learner's log-probabilities when it first saw these rows, where the loss compares with them."""
        if self.args.correction == "ratio":
            return None
        width = logps.shape[1]
        if PROXIMAL not in inputs:
            inputs[PROXIMAL] = torch.zeros_like(inputs["old_per_token_logps"])
            inputs[PROXIMAL][rows, :width] = logps.detach()
        return inputs[PROXIMAL][rows, :width]

    def _corrected(
        self, logps: Tensor, to_who_drew: Tensor, weight: Tensor, before: Tensor | None
    ) -> tuple[Tensor, Tensor | float, Tensor]:
        """The loss's log ratio, a factor of the loss, and which tokens the factor cuts off.

        What was drawn with other weights is worth p / p_drew. As `ratio` that is the loss's own ratio, and its clip is
        around who drew. Otherwise the loss's ratio is to the learner itself when it first saw the answers, and its clip
        around that; and p_before / p_drew is a factor, held below a bound (`truncated`), or 0 where it is not within
        [1/bound, bound] (`icepop`).
        """
        if before is None:
            return to_who_drew, 1.0, torch.zeros_like(weight, dtype=torch.bool)
        log_ratio = (logps - before) * weight
        apart, bound = to_who_drew.detach() - log_ratio.detach(), self.args.correction_bound
        factor = policy_loss.truncated(apart, high=bound)
        if self.args.correction == "truncated":
            return log_ratio, factor, apart.exp() > bound
        kept = policy_loss.iced(apart, bound)
        return log_ratio, factor * kept, kept == 0

    def _token_loss(self, logps: Tensor, log_ratio: Tensor, gain: Tensor, weight: Tensor) -> Tensor:
        low, high, kind = self.epsilon_low, self.epsilon_high, self.args.policy_loss
        if kind == "cispo":
            return policy_loss.cispo(logps, log_ratio, gain, 0.0, 1 + high)
        if kind == "importance":
            return policy_loss.importance(log_ratio, gain)
        if kind == "gspo":
            return policy_loss.clipped(policy_loss.sequence_log_ratio(log_ratio, weight), gain, low, high)
        dual = self.args.dual_clip if kind == "dual" else None
        return policy_loss.clipped(log_ratio, gain, low, high, dual)

    def _forwarded(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """Rows that move the policy, the longest last; one at least, so that there is a gradient to be zero."""
        moved = (advantages != 0).any(1) if self._skips else mask.any(1)
        lengths = mask.sum(1)
        rows = moved.nonzero()[:, 0]
        if not len(rows):
            rows = lengths.argmin()[None]
        self.forwarded_rows += self.over_all(len(rows))
        self.left_out_rows += self.over_all(len(mask) - len(rows))
        return rows[lengths[rows].argsort(stable=True)]

    def _denominator(self, inputs: Batch, rows: int, normaliser: Normaliser) -> Tensor:
        """D of the optimizer step, divided by the processes, whose gradients are averaged."""
        training = self.mode == "train"
        cuts = self.current_gradient_accumulation_steps if training else 1
        if normaliser == "constant":
            rows = self.args.per_device_train_batch_size if training else rows  # the mean, passes have more or fewer
            return torch.tensor(float(rows * cuts * self.longest))
        total = inputs["num_items_in_batch"].float() / self.accelerator.num_processes
        return total * cuts / (self.args.steps_per_generation or 1) if training else total

    def _note(
        self,
        log_ratio: Tensor,
        entropy: Tensor,
        clip: Tensor,
        cut_off: Tensor,
        here: Tensor,
        forwarded: tuple[int, int],
    ) -> None:
        """Metrics of a step, over the tokens that all its micro-batches and processes have forwarded.

        Args:
            log_ratio: to who drew.
            entropy: of each prediction.
            clip: where the loss has no gradient.
            cut_off: where the factor of the loss is not the ratio that it stands for.
            here: which tokens count.
            forwarded: tokens, prompts among them, and places with padding.
        """
        ratio = log_ratio.exp()[here]
        if not bool(ratio.isfinite().all()):
            raise NumericalError("a ratio of probabilities is not finite", where="training", fix="lower learning_rate")
        divergence = policy_loss.divergence(-log_ratio[here], torch.zeros_like(ratio))
        furthest = (ratio - 1).abs().max() if len(ratio) else ratio.sum()
        of_tokens = [entropy[here].sum(), ratio.sum(), clip[here].sum(), divergence.sum(), cut_off[here].sum()]
        found = torch.stack([*of_tokens, here.sum(), *map(ratio.new_tensor, forwarded), furthest]).double()
        self._noted = (*self._noted, found)
        if self.mode == "train" and (self._step + 1) % self.current_gradient_accumulation_steps:
            return
        everywhere, self._noted = cast(Tensor, gather(torch.stack(self._noted))), ()
        *totals, tokens, real, cells = everywhere[:, :-1].sum(0).tolist()
        forwarded_each = everywhere[:, -2].view(self.accelerator.num_processes, -1).sum(1)
        names = ("entropy", "ratio/mean", "clip_ratio/region_mean", "kl/sampler", "cut_off")
        metrics = {name: total / max(tokens, 1.0) for name, total in zip(names, totals, strict=True)}
        metrics |= {"packing": real / cells, "ratio/furthest": float(everywhere[:, -1].max())}
        if self.args.correction == "ratio":
            del metrics["cut_off"]
        if len(forwarded_each) > 1:
            metrics["imbalance"] = float(forwarded_each.max() / forwarded_each.mean())
        for name, value in metrics.items():
            self._metrics[self.mode][name].append(value)
