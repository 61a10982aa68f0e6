"""What the stage `align` does: pairs in, one of the trainers, an ordinary checkpoint out."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from burnish.core.checkpoint import Lineage, Model, cast, load
from burnish.core.checkpoint.adapter import Adapter
from burnish.core.checkpoint.packed_integers import check_whole_numbers, quantization_config
from burnish.core.errors import CheckpointError, DataError, MissingExtraError, SettingsError
from burnish.core.kinds import Kind, Weights
from burnish.core.stage import Context
from burnish.core.store import Store
from burnish.data.preferences import RIGHT, Pairs, check_pairs, import_datasets, pairs_of, read_pairs, rows_digest
from burnish.data.prompts import question_groups
from burnish.optim import optimizer_class

try:
    from accelerate.utils import is_peft_model
    from transformers.trainer_callback import PrinterCallback
    from trl import KTOConfig, extract_prompt

    from burnish.align.around_trainer import Bar, last_state, libraries_quiet, on_device, trainer_arguments
    from burnish.align.pair_checks import ROW, SOFT_ADVICE, DataReport
    from burnish.align.stage import STOCK_LOSSES
    from burnish.align.trainers import (
        PairDPOConfig,
        PairDPOTrainer,
        PairRewardConfig,
        PairRewardTrainer,
        StockDPOConfig,
        StockDPOTrainer,
        StockKTOTrainer,
    )
except ImportError as error:
    raise MissingExtraError(error.name or "trl", "align", "preference training") from None

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, Trainer

    from burnish.align.stage import Align, Grpo

AnyTrainer: TypeAlias = "PairDPOTrainer | PairRewardTrainer | StockKTOTrainer"

LOGGED = ("loss", "rewards/margins", "margin", "pairs/accuracy", "pairs/tau", "pairs/delta")


def run(settings: Align, model: Model, ctx: Context) -> Model:
    """Trains `model` on the pairs of `ctx.inputs["data"]` and returns the aligned model or the reward model.

    Raises:
        DataError: no pairs, or unusable ones (see `read_pairs` and the trainers).
        CheckpointError: the reference reads other tokens, or the state in the work directory is of another training.
    """
    with libraries_quiet(ctx.progress.log):
        return _train(settings, model, ctx)


def run_grpo(settings: Grpo, model: Model, ctx: Context) -> Model:
    """Trains `model` on answers that can be checked; see `burnish.align.grpo_run`."""
    from burnish.align.grpo_run import run

    return run(settings, model, ctx)


def _train(settings: Align, model: Model, ctx: Context) -> Model:
    is_packed = bool(model.packed) or model.lineage.weights is Weights.PACKED
    if is_packed:
        check_whole_numbers(quantization_config(model), purpose="adapters are trained beside")
    pairs = _pairs(ctx.inputs.get("data"), settings)
    if settings.loss == "kto" and any(row.get(RIGHT) is not None for row in pairs.rows):
        raise SettingsError(f"kto does not read {RIGHT}, which {pairs.source} has", where="loss", fix=SOFT_ADVICE)
    reference = _reference(ctx.inputs.get("reference"), model)
    states = _states(settings, model, pairs, reference, ctx)
    train, held_out = hold_out(pairs, settings.holdout, ctx.generator)
    trainer = _trainer(settings, model, reference, _arguments(settings, ctx, states), train, held_out, ctx)
    read = DataReport(len(pairs) + sum(pairs.dropped.values()), len(pairs), dropped=Counter(pairs.dropped))
    if pairs.unread:
        ctx.progress.log(f"not read, though the pairs have no prompt: {', '.join(pairs.unread)}; see columns")
    reports = {"as read": read} | trainer.data_reports
    for name, report in reports.items():
        ctx.progress.log(f"{name} data: {report}")
    ctx.ledger.table("preference_data", [_counts(name, report) for name, report in reports.items()])
    before = trainer.evaluate() if held_out is not None else {}
    with ctx.progress.task(f"align ({settings.loss})", unit="steps") as task:
        trainer.add_callback(Bar(task))
        trainer.train(resume_from_checkpoint=last_state(states))
    after = trainer.evaluate() if held_out is not None else {}
    _record(trainer, before, after, ctx)
    if is_packed:
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        made = model.with_adapter(Adapter.trained(trained, dtype=model.module.dtype))
        made.lineage.methods = settings.methods
        return made
    kind = Kind.SEQUENCE_CLASSIFIER if settings.makes_reward else Kind.CAUSAL_LM
    lineage = Lineage(kind=kind, base_model=model.name, licence=model.lineage.licence, methods=settings.methods)
    tokenizer = model.tokenizer
    if settings.makes_reward and tokenizer.pad_token is None:  # a batch of answers could not be scored
        tokenizer = trainer.processing_class
    module = cast(_trained(trainer), model.module.dtype).eval()
    return model.derive(module=module, lineage=lineage, tokenizer=tokenizer)


def _states(settings: Align, model: Model, pairs: Pairs, reference: Model | None, ctx: Context) -> Path:
    """The directory of the trainer's states, which are refused where they are of another training."""
    key = settings.canonical() | {
        "stage": f"{settings.name} {settings.version}",
        "model": model.identity,
        "data": rows_digest(pairs.rows),
        "reference": None if reference is None else reference.identity,
    }
    return Store(ctx.work_dir).open("trainer", key)


def _trainer(
    settings: Align,
    model: Model,
    reference: Model | None,
    arguments: dict[str, Any],
    train: Pairs,
    held_out: Pairs | None,
    ctx: Context,
) -> AnyTrainer:
    """The trainer of the loss, with its optimizer, on a copy of the model."""
    made = _answers if settings.loss == "kto" else _numbered
    # float32 weights: at these learning rates bfloat16 would round updates away
    module = on_device(_reward_module(model, settings.seed) if settings.makes_reward else model.module, ctx)
    common: dict[str, Any] = {
        "train_dataset": made(train, ctx.generator),
        "eval_dataset": made(held_out, ctx.generator) if held_out is not None else None,
        "processing_class": copy.deepcopy(model.tokenizer),
        "peft_config": _lora(settings),
    }
    trainer: AnyTrainer
    if settings.makes_reward:
        trainer = PairRewardTrainer(module, PairRewardConfig(**arguments), **common)
    else:
        # without a second model the policy is its own reference: log-probabilities are taken before the first step
        own = reference is None and not settings.lora_rank
        arguments |= {"beta": settings.beta, "precompute_ref_log_probs": own}
        second = None if reference is None else on_device(reference.module, ctx)
        if settings.loss == "kto":
            trainer = StockKTOTrainer(module, second, _kto_config(arguments), **common)
        elif settings.loss in STOCK_LOSSES:
            weights = [1.0, settings.sft_weight] if settings.loss == "sft-mix" else None
            stock = {"loss_type": STOCK_LOSSES[settings.loss], "loss_weights": weights}
            trainer = StockDPOTrainer(module, second, StockDPOConfig(**arguments, **stock), **common)  # type: ignore[arg-type]
        else:
            trainer = PairDPOTrainer(module, second, PairDPOConfig(**arguments), **common)
    trainer.remove_callback(PrinterCallback)
    policy = trainer.model
    assert policy is not None, "TRL's trainers have a model from the start"
    # made after the trainer has added its adapters, which are routed too; the Trainer then makes none of its own
    trainer.optimizer = optimizer_class(settings.optimizer).for_model(policy, settings.learning_rate, weight_decay=0.0)
    return trainer


def _trained(trainer: AnyTrainer) -> PreTrainedModel:
    """What the trainer trained, adapters merged, as an ordinary model."""
    result: Any = trainer.accelerator.unwrap_model(trainer.model)
    if is_peft_model(result):
        result = result.merge_and_unload()
    result.__dict__.pop("forward", None)  # TRL's fused head; the class's own forward is what a checkpoint has
    return result


def hold_out(pairs: Pairs, share: float, generator: torch.Generator) -> tuple[Pairs, Pairs | None]:
    """Splits off about `share` of the questions; all pairs of one question go to the same side."""
    groups = question_groups(pairs.rows)
    questions = sorted(set(groups))
    count = round(share * len(questions))
    if count == 0:
        return pairs, None
    chosen = {questions[index] for index in torch.randperm(len(questions), generator=generator)[:count].tolist()}
    sides: list[list[int]] = [[], []]
    for index, group in enumerate(groups):
        sides[group in chosen].append(index)
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
        return read_pairs(given, on_bad_pair=settings.on_bad_pair, columns=settings.columns)
    rows = [dict(row) for row in given]
    pairs = Pairs(rows, list(range(len(rows))), "data")
    return pairs_of(pairs, on_bad_pair=settings.on_bad_pair, columns=settings.columns)


def _answers(pairs: Pairs, generator: torch.Generator) -> Dataset:
    """Every answer by itself with its label, in a drawn order: TRL reads them as they stand, good ones first of all."""
    answers = []
    for row in pairs.rows:
        whole = row if row.get("prompt") is not None else extract_prompt(row)
        answers += [
            {"prompt": whole["prompt"], "completion": whole[side], "label": side == "chosen"}
            for side in ("chosen", "rejected")
        ]
    order = torch.randperm(len(answers), generator=generator).tolist()
    return import_datasets().Dataset.from_list([answers[place] for place in order])


def _kto_config(arguments: dict[str, Any]) -> KTOConfig:
    """A pair is two answers, so a step sees as many pairs as with the other losses."""
    known = {field.name for field in dataclasses.fields(KTOConfig)}
    sizes = ("per_device_train_batch_size", "per_device_eval_batch_size")
    doubled = {name: 2 * arguments[name] for name in sizes}
    return KTOConfig(**{name: value for name, value in (arguments | doubled).items() if name in known})


def _numbered(pairs: Pairs, generator: torch.Generator) -> Dataset:
    """For the trainers, with the rows' numbers in the file, which their messages name."""
    return pairs.dataset().add_column(ROW, pairs.numbers)  # type: ignore[call-arg]  # a fingerprint is optional


def _arguments(settings: Align, ctx: Context, states: Path) -> dict[str, Any]:
    """Of both configurations."""
    return {
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
    } | trainer_arguments(settings, ctx, states)


def _lora(settings: Align) -> LoraConfig | None:
    if not settings.lora_rank:
        return None
    from peft import LoraConfig

    rank = settings.lora_rank
    kind: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if settings.makes_reward:
        kind = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", **kind)


def _reference(given: Model | str | Path | None, model: Model) -> Model | None:
    """The reference; refuses one that reads other tokens than the model."""
    if given is None:
        return None
    reference = given if isinstance(given, Model) else load(given)
    if reference.has_tokenizer and reference.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise CheckpointError(
            "the reference has another vocabulary than the model",
            where=str(reference.path or "reference"),
            fix="use the checkpoint that the model was trained from",
        )
    return reference


def _reward_module(model: Model, seed: int) -> PreTrainedModel:
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


def _counts(name: str, report: DataReport) -> dict[str, str | int]:
    """What truncation and the checks did to a data set, as a row of the ledger."""
    why = "; ".join(f"{count} {reason}" for reason, count in report.dropped.items())
    numbers = {report.unit: report.rows, "kept": report.kept, "shortened": report.shortened}
    return {"data": name} | numbers | {"left out": why or "none"}


def _record(trainer: Trainer, before: dict[str, float], after: dict[str, float], ctx: Context) -> None:
    rows = []
    for entry in trainer.state.log_history:
        values = {key: entry[key] for key in LOGGED if key in entry}
        if values:
            rows.append({"step": entry["step"]} | values)
    ctx.ledger.table("preference_training", rows)
    names = {"eval_pairs/accuracy": "accuracy", "eval_rewards/margins": "margin"}
    names |= {"eval_margin": "margin", "eval_loss": "loss"}
    held = [
        {"measure": name, "before": before[key], "after": after[key]} for key, name in names.items() if key in after
    ]
    if held:
        ctx.ledger.table("preference_held_out", held)
        said = ", ".join(f"{row['measure']} {row['before']:.3f} -> {row['after']:.3f}" for row in held)
        ctx.progress.log(f"held-out pairs: {said}")
