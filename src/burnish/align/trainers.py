"""TRL trainers whose loss adapts to each pair: thin subclasses of DPOTrainer and RewardTrainer.

    trainer = RobustDPOTrainer(model, args=RobustDPOConfig("out", lam=0.75), train_dataset=pairs, processing_class=tok)
    trainer.train()
    trainer.pair_report(pairs).to_pandas()          # margin, delta, tau, weight; the most suspicious pair first

Everything but the number that is minimised stays TRL's: data preparation, the three ways to a reference (a second
model, the adapter switched off, precomputed log-probabilities), LoRA, f-divergences, WPO weights, metrics. The stock
`_compute_loss` runs as it is, on a model that remembers its forward pass; the loss is then taken from the margins of
that pass (`burnish.align.losses`). TRL has no registry of losses, and `_compute_loss` is private, so trl is pinned
and a test compares loss and gradient with the stock trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, Trainer
from trl import DPOTrainer, KTOConfig, KTOTrainer, RewardTrainer

from burnish.align.configs import (
    AdaptiveDPOConfig,
    AdaptiveRewardConfig,
    PairDPOConfig,
    PairRewardConfig,
    RobustDPOConfig,
    RobustRewardConfig,
    StockDPOConfig,
)
from burnish.align.losses import Diagnostics, smoothed_pair_loss
from burnish.align.maths.direct import direct_margin, sequence_log_prob
from burnish.align.pair_checks import ROW, DataReport, PairChecks, without_second_bos
from burnish.align.trainer_seam import (
    Example,
    PairArguments,
    PairBatch,
    Policy,
    PolicyOutputs,
    Processing,
    ScoreOutputs,
    Scorer,
)
from burnish.core.errors import CheckpointError, DataError, SettingsError
from burnish.data.preferences import RIGHT

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

__all__ = [
    "AdaptiveDPOConfig",
    "AdaptiveDPOTrainer",
    "AdaptiveRewardConfig",
    "AdaptiveRewardTrainer",
    "PairDPOConfig",
    "PairDPOTrainer",
    "PairRewardConfig",
    "PairRewardTrainer",
    "RobustDPOConfig",
    "RobustDPOTrainer",
    "RobustRewardConfig",
    "RobustRewardTrainer",
    "StockDPOConfig",
    "StockDPOTrainer",
    "StockKTOTrainer",
]

PAIRS_IN_BATCH = "pairs in batch"
MEANS_OVER_PAIRS = ("rewards/", "logps/", "pairs/", "accuracy", "margin", "mean_reward")
"""Beginnings of names: metrics of a batch that are means over its pairs. Others are means over tokens, or extremes."""


class _Listener:
    """Stands in for the model during one call of the stock loss, and remembers the first forward pass."""

    def __init__(self, model: Policy) -> None:
        self.model = model
        self.first: PolicyOutputs | None = None

    def __call__(self, **inputs: object) -> PolicyOutputs:
        outputs = self.model(**inputs)
        self.first = self.first or outputs
        return outputs


class _PairLoss(PairChecks):
    """What both trainers do with the margins of a batch: the loss, its logs, and a report on single pairs."""

    _metrics: dict[str, dict[str, list[float]]]

    def _loss_of(self, margin: Tensor, right: Tensor | None) -> tuple[Tensor, Diagnostics]:
        args = _pair_arguments(self)
        return smoothed_pair_loss(args.pair_loss, margin, args.label_smoothing, right=right, **args.loss_settings())

    def _pair_losses(self, margin: Tensor, gap: Tensor | None = None) -> Tensor:
        """The loss of every pair; its diagnostics are logged, and whether the reward gap has the label's sign.

        A tie counts half: an untrained policy, which is its own reference, has a gap of zero everywhere, and is right
        as often as chance; the stock accuracy says never.
        """
        with self._naming_rows():
            losses, found = self._loss_of(margin, self._right_of_batch)
        right = (1 + (margin if gap is None else gap).detach().sign()) / 2
        self._log_pairs(found | {"accuracy": right})
        return losses

    def _log_pairs(self, found: Diagnostics) -> None:
        """`pairs/accuracy`, `pairs/tau`, `pairs/delta`, `pairs/weight`, beside the stock metrics."""
        names = list(found)
        values = torch.stack([found[name].mean() for name in names])
        gathered = cast("Tensor", self.accelerator.gather_for_metrics(values[None])).mean(dim=0).tolist()
        for name, value in zip(names, gathered, strict=True):
            self._metrics_now[f"pairs/{name}"].append(value)
        count = torch.tensor([len(found[names[0]])], device=values.device)
        self._metrics_now[PAIRS_IN_BATCH].append(float(cast("Tensor", self.accelerator.gather(count)).sum()))

    @property
    def _metrics_now(self) -> dict[str, list[float]]:
        assert self.model is not None, "TRL's trainers have a model from the start"
        return self._metrics["train" if self.model.training else "eval"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's, with means over pairs: it takes the mean of batch means, though the last batch may be smaller."""
        metrics = self._metrics_now
        sizes = metrics.pop(PAIRS_IN_BATCH, [])
        for name in (name for name in metrics if name.startswith(MEANS_OVER_PAIRS)):
            metrics[name] = [sum(v * n for v, n in zip(metrics[name], sizes, strict=True)) / sum(sizes)]
        super().log(logs, start_time)

    def _report(self, dataset: Dataset, margins_of: Callable[[PairBatch], Tensor]) -> Dataset:
        """One row per pair, sorted by margin: every loss suspects the pair that the model contradicts most."""
        model = self.model
        assert model is not None, "TRL's trainers have a model from the start"
        processing = cast("Processing", self.processing_class)
        prepared = cast("Dataset", self._prepare_dataset(dataset, processing, self.args, "report"))
        size = self.args.per_device_eval_batch_size
        margins, rows, soft = [], [], []
        model.eval()
        for start in range(0, len(prepared), size):
            examples: list[Example] = [prepared[index] for index in range(start, min(start + size, len(prepared)))]
            batch = self._prepare_inputs(self.data_collator(examples))
            with torch.no_grad(), self.compute_loss_context_manager():
                margins.append(margins_of(batch).cpu())
            soft += [example.get(RIGHT, 1.0) for example in examples]
            rows += [example[ROW] for example in examples]
        margin = torch.cat(margins).float()
        loss, found = self._loss_of(margin, torch.tensor(soft) if RIGHT in prepared.column_names else None)
        columns: dict[str, Tensor] = {"margin": margin, "loss": loss} | found
        order = margin.argsort(stable=True).tolist()
        content = {"row": [rows[i] for i in order]}
        return Dataset.from_dict(content | {key: values[order].tolist() for key, values in columns.items()})


class PairDPOTrainer(_PairLoss, DPOTrainer):
    """DPOTrainer that minimises a pair loss of the implicit reward margin.

    Args: as `trl.DPOTrainer`; `args` is a `PairDPOConfig`.

    Raises:
        CheckpointError: an in-memory model that was never saved is given without a reference, or the reference has
            another vocabulary.
        DataError: a pair without a preference, or one that truncation leaves without (by row).
        SettingsError: impossible loss settings.
    """

    args: PairDPOConfig
    default_config = PairDPOConfig

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        args: PairDPOConfig | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or self.default_config(f"{_name(model)}-{self.default_config.pair_loss}")
        _check_reference(model, ref_model, args, kwargs.get("peft_config"))
        super().__init__(model, ref_model, args, **kwargs)

    def _kept_tokens(self, example: Example, args: PairArguments) -> tuple[list[int], list[int], bool]:
        prompt, limit = len(example["prompt_ids"]), args.max_length
        chosen, rejected = example["chosen_ids"], example["rejected_ids"]
        if limit is None or prompt + max(len(chosen), len(rejected)) <= limit:
            return chosen, rejected, False
        if cast("PairDPOConfig", args).truncation_mode == "keep_start":
            return chosen[: limit - prompt], rejected[: limit - prompt], True
        return chosen[-limit:], rejected[-limit:], True

    def _compute_loss(
        self, model: Policy, inputs: PairBatch, return_outputs: bool
    ) -> Tensor | tuple[Tensor, PolicyOutputs]:
        stock, outputs, margin = self._stock_loss(model, inputs, return_outputs)
        losses = self._pair_losses(margin)
        if self.use_weighting:
            losses = losses * self._wpo_weight(outputs, inputs)
        loss = losses.mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        return (loss, stock[1]) if return_outputs else loss

    def _stock_loss(self, model: Policy, inputs: PairBatch, return_outputs: bool) -> tuple[Any, PolicyOutputs, Tensor]:
        """What TRL's method returns, the outputs of the forward pass that it made, and the margins of these."""
        inputs = self._with_reference(inputs)
        listener = _Listener(model)
        precomputed, self.precompute_ref_logps = self.precompute_ref_logps, True
        try:
            stock = super()._compute_loss(listener, inputs, return_outputs)
        finally:
            self.precompute_ref_logps = precomputed
        outputs = listener.first
        assert outputs is not None, "the stock loss calls the model"
        return stock, outputs, self._margin(outputs, inputs)

    def _with_reference(self, inputs: PairBatch) -> PairBatch:
        """The batch with the reference's log-probabilities in it, as if they had been precomputed."""
        if self.precompute_ref_logps:
            return inputs
        chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        return inputs | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def _margin(self, outputs: PolicyOutputs, inputs: PairBatch) -> Tensor:
        mask = inputs["completion_mask"][:, 1:]
        # prompt-learning adapters put virtual tokens in front; the last positions are the real ones
        per_token = outputs.log_probs[:, -mask.shape[1] :]
        log_prob = sequence_log_prob(per_token, mask, self.ld_alpha)
        return direct_margin(
            log_prob,
            inputs["ref_chosen_logps"],
            inputs["ref_rejected_logps"],
            self.beta,
            self.f_divergence_type,
            self.f_alpha_divergence_coef,
        )

    def _wpo_weight(self, outputs: PolicyOutputs, inputs: PairBatch) -> Tensor:
        """Weight of a pair by how likely the policy is to write it (WPO, 2024, arXiv 2406.11827, eq. 2)."""
        mask = inputs["completion_mask"][:, 1:]
        with torch.no_grad():
            aligned = (outputs.log_probs - outputs.log_sum_sq_probs)[:, -mask.shape[1] :] * mask
            chosen, rejected = (aligned.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).exp().chunk(2)
        return chosen * rejected

    def pair_report(self, dataset: Dataset) -> Dataset:
        """Margin, loss, weight and the loss's own diagnostics of every pair, the most suspicious first.

        Columns `ref_chosen_logps` and `ref_rejected_logps` are taken as the reference's, where the data has them.

        Raises:
            SettingsError: the reference was precomputed and is no longer in memory: the policy has been trained since.
        """
        given = {"ref_chosen_logps", "ref_rejected_logps"} <= set(dataset.column_names)
        gone = self.precompute_ref_logps and self.ref_model is None and not is_peft_model(self.model)
        if gone and not given and self.state.global_step > 0:
            raise SettingsError(
                "the reference was precomputed and is no longer in memory",
                where="pair_report",
                fix="give the trainer a ref_model",
            )
        policy = cast("Policy", self.model)

        def margins_of(batch: PairBatch) -> Tensor:
            labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
            passed = {key: batch[key] for key in ("input_ids", "attention_mask")}
            if not given:
                chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, batch)
                batch |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
            outputs = policy(**passed, labels=labels, use_cache=False, fused_lm_head=True)
            return self._margin(outputs, batch)

        return self._report(dataset, margins_of)


class StockDPOTrainer(PairDPOTrainer):
    """DPOTrainer with the loss that its `loss_type` names, and the checks, logs and messages of the pair losses."""

    reads_soft_labels = False
    args: StockDPOConfig  # type: ignore[assignment]  # reads the same fields, and lets TRL's loss_type stand
    default_config = StockDPOConfig  # type: ignore[assignment]

    def _compute_loss(
        self, model: Policy, inputs: PairBatch, return_outputs: bool
    ) -> Tensor | tuple[Tensor, PolicyOutputs]:
        stock, _, margin = self._stock_loss(model, inputs, return_outputs)
        self._log_pairs({"accuracy": (1 + margin.detach().sign()) / 2})
        return stock


class StockKTOTrainer(KTOTrainer):
    """KTOTrainer on answers that are each marked good or bad, with a report of what truncation did.

    Its data has `prompt`, `completion` and `label`, in the order in which it is trained on: TRL takes it as it comes.

    Attributes:
        data_reports: of each data set, by its name; in answers.
    """

    data_reports: dict[str, DataReport]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.data_reports = {}
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, processing_class: Processing, args: KTOConfig, dataset_name: str) -> Any:
        once = without_second_bos(dataset, processing_class)
        prepared: Any = super()._prepare_dataset(once, processing_class, args, dataset_name)
        report = self.data_reports[dataset_name] = DataReport(len(dataset), len(prepared), unit="answers")
        if len(prepared) < len(dataset):
            report.dropped["longer than max_length"] = len(dataset) - len(prepared)
        if not len(prepared):
            raise DataError(
                "every prompt fills max_length by itself, so no answer is left",
                where=f"{dataset_name} data",
                fix="raise max_length",
            )
        sizes = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in prepared]
        report.shortened = sum(args.max_length is not None and size > args.max_length for size in sizes)
        return prepared


class AdaptiveDPOTrainer(PairDPOTrainer):
    """Ada-DPO: a scale per pair. "Adaptive Preference Scaling for RLHF", 2024, arXiv 2406.02764."""

    default_config = AdaptiveDPOConfig


class RobustDPOTrainer(PairDPOTrainer):
    """R3M-DPO: a bounded pull per pair. "Robust RL from Corrupted Human Feedback", 2024, arXiv 2406.15568."""

    default_config = RobustDPOConfig


class PairRewardTrainer(_PairLoss, RewardTrainer):
    """RewardTrainer that minimises a pair loss of the reward difference.

    A `margin` column is subtracted from the difference, as in the stock trainer, and `center_rewards_coefficient`
    works as there. What it saves is the ordinary sequence-classification model with one label.
    """

    args: PairRewardConfig
    default_config = PairRewardConfig

    def __init__(
        self, model: str | PreTrainedModel | PeftModel, args: PairRewardConfig | None = None, **kwargs: Any
    ) -> None:
        args = args or self.default_config(f"{_name(model)}-{self.default_config.pair_loss}-reward")
        super().__init__(model, args, **kwargs)

    def _kept_tokens(self, example: Example, args: PairArguments) -> tuple[list[int], list[int], bool]:
        return example["chosen_ids"], example["rejected_ids"], False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: PairBatch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, ScoreOutputs]:
        stock = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        _, outputs = cast("tuple[Tensor, ScoreOutputs]", stock)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        gap = chosen - rejected
        loss = self._pair_losses(gap - inputs.get("margin", 0.0), gap).mean()
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * (chosen + rejected).square().mean()
        return (loss, outputs) if return_outputs else loss

    def pair_report(self, dataset: Dataset) -> Dataset:
        """Margin, loss, weight and the loss's own diagnostics of every pair, the most suspicious first."""
        scorer = cast("Scorer", self.model)

        def margins_of(batch: PairBatch) -> Tensor:
            passed = {key: batch[key] for key in ("input_ids", "attention_mask")}
            chosen, rejected = scorer(**passed, use_cache=False).logits.squeeze(-1).chunk(2)
            return chosen - rejected - batch.get("margin", 0.0)

        return self._report(dataset, margins_of)


class AdaptiveRewardTrainer(PairRewardTrainer):
    """A reward model with a scale per pair (arXiv 2406.02764)."""

    default_config = AdaptiveRewardConfig


class RobustRewardTrainer(PairRewardTrainer):
    """A reward model with a bounded pull per pair (arXiv 2406.15568)."""

    default_config = RobustRewardConfig


# -- borders -------------------------------------------------------------------------------------------------------


def _check_reference(
    model: str | PreTrainedModel | PeftModel,
    ref_model: PreTrainedModel | None,
    args: PairDPOConfig,
    peft_config: PeftConfig | None,
) -> None:
    if ref_model is not None:
        config = AutoConfig.from_pretrained(model) if isinstance(model, str) else model.config
        ours, theirs = config.get_text_config().vocab_size, ref_model.config.get_text_config().vocab_size
        if ours != theirs:
            raise CheckpointError(
                f"the reference has a vocabulary of {theirs:,} tokens, but the model has {ours:,}",
                where="ref_model",
                fix="use the checkpoint that the model was trained from",
            )
        return
    if isinstance(model, str) or is_peft_model(model) or peft_config is not None or args.precompute_ref_log_probs:
        return
    if not getattr(model.config, "_name_or_path", ""):
        raise CheckpointError(
            "the model exists in memory only and there is no reference, so TRL could not load one",
            where="ref_model",
            fix="pass ref_model, set precompute_ref_log_probs, or save the model and pass its path",
        )


def _name(model: str | PreTrainedModel | PeftModel) -> str:
    return Path(model if isinstance(model, str) else model.config._name_or_path or "model").name


def _pair_arguments(trainer: Trainer) -> PairArguments:
    return cast("PairArguments", trainer.args)
