"""What the stage `align` does: pairs in, one of the trainers, an ordinary checkpoint out."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from burnish.align.pairs import Pairs, check_pairs, import_datasets, read_pairs, split_prompt
from burnish.core.checkpoint import Lineage, Model, cast, load
from burnish.core.errors import CheckpointError, DataError, MissingExtraError
from burnish.core.kinds import Kind
from burnish.core.stage import Context
from burnish.optim import optimizer_class

try:
    from transformers.trainer_callback import PrinterCallback, TrainerCallback

    from burnish.align.pair_checks import ROW
    from burnish.align.trainers import (
        PairDPOConfig,
        PairDPOTrainer,
        PairRewardConfig,
        PairRewardTrainer,
        truncation_sentence,
    )
except ImportError as error:
    raise MissingExtraError(error.name or "trl", "align", "preference training") from None

if TYPE_CHECKING:
    from datasets import Dataset

    from burnish.align.stage import Align

LOGGED = ("loss", "rewards/margins", "rewards/accuracies", "margin", "accuracy", "pairs/tau", "pairs/delta")


@contextlib.contextmanager
def _libraries_silent() -> Iterator[None]:
    """The stage has a bar and messages of its own; those of TRL, datasets and transformers stay out of them."""
    from transformers.utils import logging as transformers_logging

    datasets = import_datasets()
    trl = logging.getLogger("trl")
    level, verbosity, inherited = trl.level, transformers_logging.get_verbosity(), os.environ.get("TQDM_DISABLE")
    bars = [
        enable
        for enable, is_shown in (
            (datasets.enable_progress_bars, not datasets.are_progress_bars_disabled()),
            (transformers_logging.enable_progress_bar, transformers_logging.is_progress_bar_enabled()),
        )
        if is_shown
    ]
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    trl.setLevel(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        for enable in bars:
            enable()
        transformers_logging.set_verbosity(verbosity)
        trl.setLevel(level)
        if inherited is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = inherited


@_libraries_silent()
def run(settings: Align, model: Model, ctx: Context) -> Model:
    """Trains `model` on the pairs of `ctx.inputs["data"]` and returns the aligned model or the reward model."""
    pairs = _pairs(ctx.inputs.get("data"), settings)
    train, held_out = hold_out(pairs, settings.holdout, ctx.generator)
    module: Any = _reward_module(model, settings.seed) if settings.makes_reward else copy.deepcopy(model.module)
    dtype = module.dtype
    module = module.float().to(
        torch.device(ctx.device)
    )  # float32 weights: at these learning rates bfloat16 would round updates away
    arguments = _arguments(settings, ctx)
    common: dict[str, Any] = {
        "train_dataset": _numbered(train),
        "eval_dataset": _numbered(held_out) if held_out is not None else None,
        "processing_class": copy.deepcopy(model.tokenizer),
        "peft_config": _lora(settings),
    }
    if settings.makes_reward:
        trainer = PairRewardTrainer(module, PairRewardConfig(**arguments), **common)
    else:
        reference = _reference(ctx.inputs.get("reference"), model, ctx)
        # without a second model the policy is its own reference: log-probabilities are taken before the first step
        own = reference is None and not settings.lora_rank
        config = PairDPOConfig(**arguments, beta=settings.beta, precompute_ref_log_probs=own)
        trainer = PairDPOTrainer(module, reference, config, **common)
    read = {"rows": len(pairs) + sum(pairs.dropped.values()), "kept": len(pairs), "shortened": 0}
    reports = {"as read": read | {"dropped": pairs.dropped}} | trainer.truncation
    for name, report in reports.items():
        ctx.progress.log(f"{name} data: {truncation_sentence(report)}")
    ctx.ledger.table("preference_data", [_counts(name, report) for name, report in reports.items()])
    trainer.remove_callback(PrinterCallback)
    # set before training, so that the adapters are there to be routed; the Trainer then makes none of its own
    policy: Any = trainer.model
    trainer.optimizer = optimizer_class(settings.optimizer).for_model(policy, settings.learning_rate, weight_decay=0.0)
    before = trainer.evaluate() if held_out is not None else {}
    with ctx.progress.task(f"align ({settings.loss})", unit="steps") as task:
        trainer.add_callback(_Bar(task))
        trainer.train(resume_from_checkpoint=_last_state(ctx.work_dir))
    after = trainer.evaluate() if held_out is not None else {}
    _record(trainer, before, after, ctx)
    result: Any = trainer.accelerator.unwrap_model(trainer.model)
    if settings.lora_rank:
        result = result.merge_and_unload()
    result.__dict__.pop("forward", None)  # TRL's fused head; the class's own forward is what a checkpoint has
    kind = Kind.SEQUENCE_CLASSIFIER if settings.makes_reward else Kind.CAUSAL_LM
    lineage = Lineage(kind=kind, base_model=model.name, licence=model.lineage.licence)
    return model.derive(module=cast(result, dtype).eval(), lineage=lineage)


def hold_out(pairs: Pairs, share: float, generator: torch.Generator) -> tuple[Pairs, Pairs | None]:
    """Splits off about `share` of the pairs; all pairs of one prompt go to the same side."""
    prompts = sorted({split_prompt(row)[0] for row in pairs.rows})
    count = round(share * len(prompts))
    if count == 0:
        return pairs, None
    chosen = {prompts[index] for index in torch.randperm(len(prompts), generator=generator)[:count].tolist()}
    sides: list[list[int]] = [[], []]
    for index, row in enumerate(pairs.rows):
        sides[split_prompt(row)[0] in chosen].append(index)
    if not sides[0]:
        return pairs, None
    parts = [Pairs([pairs.rows[i] for i in side], [pairs.numbers[i] for i in side], pairs.source) for side in sides]
    return parts[0], parts[1]


def _pairs(given: Any, settings: Align) -> Pairs:
    if given is None:
        raise DataError("no preference data was given", where="data", fix="name a file of pairs")
    if isinstance(given, Pairs):
        return check_pairs(given, on_bad_pair=settings.on_bad_pair)
    if isinstance(given, str | Path):
        return read_pairs(given, on_bad_pair=settings.on_bad_pair)
    rows = [dict(row) for row in given]
    return check_pairs(Pairs(rows, list(range(len(rows))), "data"), on_bad_pair=settings.on_bad_pair)


def _numbered(pairs: Pairs) -> Dataset:
    """For the trainers, with the rows' numbers in the file, which their messages name."""
    return pairs.dataset().add_column(ROW, pairs.numbers)  # type: ignore[call-arg]  # a fingerprint is optional


def _arguments(settings: Align, ctx: Context) -> dict[str, Any]:
    on_gpu = ctx.device.startswith("cuda")
    return {
        "output_dir": str(ctx.work_dir / "trainer"),
        "pair_loss": settings.pair_loss,
        "rho0": settings.rho0,
        "tau0": settings.tau0,
        "tau_max": settings.tau_max,
        "lam": settings.lam,
        "label_smoothing": settings.label_smoothing,
        "on_bad_pair": settings.on_bad_pair,
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": settings.micro_batch,
        "per_device_eval_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": settings.batch // settings.micro_batch,
        "max_length": settings.max_length,
        "warmup_steps": settings.warmup,
        "seed": settings.seed,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": on_gpu,
    }


def _lora(settings: Align) -> Any:
    if not settings.lora_rank:
        return None
    from peft import LoraConfig

    rank = settings.lora_rank
    if settings.makes_reward:
        return LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"]
        )
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def _reference(given: Any, model: Model, ctx: Context) -> Any:
    """The reference's module, on the device; refuses one that reads other tokens than the model."""
    if given is None:
        return None
    reference = given if isinstance(given, Model) else load(given)
    if reference.has_tokenizer and reference.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise CheckpointError(
            "the reference has another vocabulary than the model",
            where=str(reference.path or "reference"),
            fix="use the checkpoint that the model was trained from",
        )
    module: Any = copy.deepcopy(reference.module)
    return module.float().to(torch.device(ctx.device))


def _reward_module(model: Model, seed: int) -> Any:
    """The model's backbone with a fresh head of one output, as the stock sequence classifier."""
    from transformers import AutoModelForSequenceClassification

    source = model.module
    config = copy.deepcopy(source.config)
    config.num_labels = 1
    config.problem_type = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    classifier.base_model.load_state_dict(source.base_model.state_dict())
    return cast(classifier, source.dtype)


def _counts(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """What truncation and the checks did to a data set, as a row of the ledger."""
    why = "; ".join(f"{count} {reason}" for reason, count in report["dropped"].items())
    numbers = {"pairs": report["rows"], "kept": report["kept"], "shortened": report["shortened"]}
    return {"data": name} | numbers | {"left out": why or "none"}


def _last_state(work_dir: Path) -> str | None:
    """The newest whole state of an interrupted run, or None. Its summary is written last, so it tells."""
    states = [path for path in (work_dir / "trainer").glob("checkpoint-*") if _is_whole(path / "trainer_state.json")]
    return str(max(states, key=lambda path: int(path.name.split("-")[1]))) if states else None


def _is_whole(summary: Path) -> bool:
    try:
        json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _record(trainer: Any, before: dict[str, float], after: dict[str, float], ctx: Context) -> None:
    rows = []
    for entry in trainer.state.log_history:
        values = {key: entry[key] for key in LOGGED if key in entry}
        if values:
            rows.append({"step": entry["step"]} | values)
    ctx.ledger.table("preference_training", rows)
    names = {"eval_rewards/accuracies": "accuracy", "eval_accuracy": "accuracy", "eval_rewards/margins": "margin"}
    names |= {"eval_margin": "margin", "eval_loss": "loss"}
    held = [
        {"measure": name, "before": before[key], "after": after[key]} for key, name in names.items() if key in after
    ]
    if held:
        ctx.ledger.table("preference_held_out", held)
        said = ", ".join(f"{row['measure']} {row['before']:.3f} -> {row['after']:.3f}" for row in held)
        ctx.progress.log(f"held-out pairs: {said}")


class _Bar(TrainerCallback):
    """Moves the progress bar once per optimizer step."""

    def __init__(self, task: Any) -> None:
        self.task = task

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.task.total = state.max_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.task.advance()
