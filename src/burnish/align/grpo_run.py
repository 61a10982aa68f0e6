"""What the stage `grpo` does: problems drawn apart from each other, the start measured, GRPO, the end measured."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from burnish.align.call_format import CallFormat
from burnish.align.envs import ChainEnv, Environment, environment
from burnish.align.episodes import Rollouts
from burnish.align.held_out import DrawnAnswers, answers, check_ready
from burnish.align.read_later import ReadLater
from burnish.core import page
from burnish.core.checkpoint import Lineage, Model, cast
from burnish.core.children import num_processes
from burnish.core.errors import MissingExtraError, SettingsError
from burnish.core.kinds import Kind
from burnish.core.store import Store
from burnish.data.chat import check_questions
from burnish.data.preferences import import_datasets
from burnish.data.trajectories.pages import Wording, pages

try:
    from transformers.trainer_callback import PrinterCallback

    from burnish.align.around_trainer import (
        Bar,
        NothingToLearn,
        Watching,
        last_state,
        libraries_quiet,
        on_device,
        trainer_arguments,
    )
    from burnish.align.episode_trainer import EpisodeConfig, EpisodeTrainer
    from burnish.align.length_control import ShortARCConfig, ShortARCTrainer
except ImportError as error:
    raise MissingExtraError(error.name or "trl", "align", "training by GRPO") from None

if TYPE_CHECKING:
    from burnish.align.stage import Grpo
    from burnish.core.stage import Context
    from burnish.train.watch import Watch

LOGGED = {
    "accuracy": "accuracy",
    "tokens": "completions/mean_length",
    "alpha": "alpha",
    "redundancy": "redundancy",
    "ratio furthest from 1": "ratio/furthest",
    "target": "acc_target",
    "reward": "rewards/correct/mean",
    "readable": "rewards/format/mean",
    "cut off": "completions/clipped_ratio",
    "none solved": "solved/none",
    "all solved": "solved/all",
    "without variance": "frac_reward_zero_std",
    "unscorable": "unscorable",
    "clipped": "clip_ratio/region_mean",
    "entropy": "entropy",
    "gradient norm": "grad_norm",
    "KL to the sampler": "kl/sampler",
    "packing": "packing",
    "imbalance": "imbalance",
    "staleness": "staleness/mean",
    "staleness at most": "staleness/max",
    "replayed": "replayed",
    "refilled": "refilled",
    "groups with variance of all drawn": "accepted",
    "turns": "episodes/turns",
    "calls": "episodes/calls",
    "failed calls": "episodes/failed_calls",
    "cut off by the correction": "cut_off",
    "seconds of drawing": "seconds/drawing",
    "seconds of drawing ahead": "seconds/drawn",
    "seconds of judging": "seconds/judging",
    "seconds of the update": "step_time",
}
"""Columns of the table of updates, and what the trainer calls them; the report draws the first of them."""
WORDING = Wording(
    kind="burnish align grpo",
    heading="What was drawn",
    lead="All answers to one problem, of updates evenly apart over the run: the first problem of each whose answers "
    "did not all earn the same. Open one to read it token by token.",
    weight="advantage",
    usual=None,
    notes="A token's advantage is what it is pushed by: above 0 it becomes likelier. The reward is the one that was "
    "given, before any rule of length.",
)
SHOWN = 12
"""Answers that the report shows, before and after."""


def run(
    settings: Grpo, model: Model, ctx: Context, *, env: Environment | None = None, watch: Watch | None = None
) -> Model:
    """Trains `model` on the environment and returns it.

    Args:
        settings: how.
        model: the start.
        ctx: of the stage.
        env: the problems to train on; drawn as the settings say where it is None.
        watch: what looks at the model on the way, and may end the training, in one process.

    Raises:
        DataError: the tokenizer has no chat template, the start is right too seldom, has nothing to shorten, or too
            many answers have no reward.
        SettingsError: answers that do not fit the model's context.
        CheckpointError: the state in the work directory is of another training.
    """
    check_questions(model.tokenizer)
    if watch is not None and num_processes() > 1:
        raise SettingsError("what is watched is trained by one process only", fix="leave `launch` out")
    with libraries_quiet(ctx.progress.log):
        if env is not None:
            return _train(settings, model, ctx, held_out(settings), env, watch)
        asked = held_out(settings)
        with contextlib.closing(to_train_on(settings, asked.questions if asked else set())) as own:
            return _train(settings, model, ctx, asked, own, watch)


def _train(
    settings: Grpo, model: Model, ctx: Context, asked: Environment | None, env: Environment, watch: Watch | None
) -> Model:
    key = settings.canonical() | {"stage": f"{settings.name} {settings.version}", "model": model.identity}
    if watch is not None:
        key |= {"problems": env.digest}
    states = Store(ctx.work_dir).open("trainer", key)
    module = on_device(model.module, ctx)
    measured = {"before": _measured(settings, model, module, asked)}
    if asked is not None:
        _check_start(settings, asked, measured["before"]["sampled"], ctx)
    trainer = _trainer(settings, model, module, env, _arguments(settings, ctx, states))
    trainer.read_later = ReadLater(settings.updates, settings.iterations)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(NothingToLearn(ctx.progress.log))
    if watch is not None:
        trainer.watch = watch
        trainer.add_callback(Watching(watch))
    with ctx.progress.task("grpo", unit="steps") as task:
        trainer.add_callback(Bar(task))
        trainer.train(resume_from_checkpoint=last_state(states))
    trained = trainer.accelerator.unwrap_model(trainer.model)
    trained.__dict__.pop("forward", None)  # TRL's fused head; the class's own forward is what a checkpoint has
    measured["after"] = _measured(settings, model, trained, asked)
    _record(trainer, env, asked, measured, ctx)
    _write_pages(trainer.read_later, model, ctx)
    lineage = Lineage(
        kind=Kind.CAUSAL_LM, base_model=model.name, licence=model.lineage.licence, methods=settings.methods
    )
    return model.derive(module=cast(trained, model.module.dtype).eval(), lineage=lineage, tokenizer=model.tokenizer)


def _trainer(settings: Grpo, model: Model, module: Any, env: Environment, arguments: dict[str, Any]) -> ShortARCTrainer:
    given: dict[str, Any] = {
        "reward_funcs": [env.reward, *([env.readable] if settings.format_share else [])],
        "train_dataset": import_datasets().Dataset.from_list(_in_order(env.rows, settings)),
        "processing_class": copy.deepcopy(model.tokenizer),
    }
    if not env.tools:
        return ShortARCTrainer(module, args=ShortARCConfig(**arguments), **given)
    form = CallFormat.of(model.tokenizer, env.tools)
    rollouts = Rollouts(form, settings.max_turns, settings.max_new_tokens, {"temperature": settings.temperature})
    config = EpisodeConfig(**arguments, credit=settings.credit)
    return EpisodeTrainer(module, args=config, env=env, rollouts=rollouts, **given)


def _in_order(rows: list[dict[str, Any]], settings: Grpo) -> list[dict[str, Any]]:
    """All prompts of the run, one pass after the other, each in an order of its own.

    TRL's sampler shuffles every pass with one generator, which after an interruption between two passes begins anew;
    in a single long pass the trainer skips what was seen.
    """
    wanted = -(-settings.updates // settings.iterations) * settings.prompts
    generator, found = torch.Generator().manual_seed(settings.seed), list[int]()
    while len(found) < wanted:
        found += torch.randperm(len(rows), generator=generator).tolist()
    return [rows[place] for place in found[:wanted]]


def to_train_on(settings: Grpo, apart_from: set[str]) -> Environment:
    """The problems that the settings name, without these questions."""
    how: dict[str, Any] = {"kind": settings.kind, "tables": settings.tables, "apart_from": apart_from}
    return environment(settings.env, settings.problems, settings.seed, **how)


def held_out(settings: Grpo, apart_from: frozenset[str] | set[str] = frozenset()) -> Environment | None:
    """Problems to measure on, without these questions; of chains, as many of every number of steps."""
    if not settings.held_out:
        return None
    seed = settings.seed + 1_000_003
    if settings.env == "chain":
        return ChainEnv(settings.held_out, seed, settings.kind, apart_from=apart_from, each=True)
    return environment(settings.env, settings.held_out, seed, tables=settings.tables, apart_from=apart_from)


def _measured(settings: Grpo, model: Model, module: Any, asked: Environment | None) -> dict[str, DrawnAnswers]:
    if asked is None:
        return {}
    return {
        how: answers(
            module,
            model.tokenizer,
            asked,
            max_new_tokens=settings.max_new_tokens,
            temperature=temperature,
            seed=settings.seed,
            max_turns=settings.max_turns,
        )
        for how, temperature in (("sampled", settings.temperature), ("greedy", 0.0))
    }


def _check_start(settings: Grpo, asked: Environment, found: DrawnAnswers, ctx: Context) -> None:
    shaped = settings.shaping != "none"
    check_ready(found, asked.name, settings.floor, settings.redundant if shaped else 0.0)
    mean = found.table("sampled")[-1]
    redundant = f", {found.redundant:.0%} of them redundant" if found.redundant == found.redundant else ""
    ctx.progress.log(f"start: sampled accuracy {mean['accuracy']:.3f}, {mean['tokens']:.1f} tokens{redundant}")


def _arguments(settings: Grpo, ctx: Context, states: Path) -> dict[str, Any]:
    processes = num_processes()
    if settings.prompts % processes:
        raise SettingsError(
            f"is {settings.prompts}, which {processes} processes do not share evenly: a group stays in one of them",
            where="prompts",
        )
    share = settings.format_share
    answers_each = settings.prompts * settings.rollouts // processes
    rows = settings.micro_batch or answers_each
    if answers_each % rows:
        raise SettingsError(
            f"is {rows}, which does not divide the {answers_each} answers of a process", where="micro_batch"
        )
    return {
        "length_shaping": settings.shaping,
        "shaping_options": settings.shaping_options,
        "reward_weights": [1 - share, share] if share else None,
        "acc_target": settings.acc_target,
        "target_updates": settings.target_updates,
        "tolerance": settings.tolerance,
        "alpha": settings.alpha,
        "alpha_max": settings.alpha_max,
        "eta": settings.eta,
        "p_min": settings.p_min,
        "token_scale": settings.token_scale,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": answers_each // rows,
        "num_generations": settings.rollouts,
        "num_iterations": settings.iterations,
        "refill": settings.refill,
        "replay": settings.replay,
        "max_staleness": settings.max_staleness,
        "reuse": settings.reuse,
        "staleness": settings.staleness,
        "asynchronous": settings.asynchronous,
        "correction": settings.correction,
        "correction_bound": settings.correction_bound,
        "packing": settings.packing,
        "share_prefixes": settings.share_prefixes,
        "max_completion_length": settings.max_new_tokens,
        "temperature": settings.temperature,
        "policy_loss": settings.policy_loss,
        "loss_type": {"token": "dapo", "constant": "dr_grpo"}[settings.normaliser],
        "scale_rewards": "group" if settings.divide_by_deviation else "none",
        "learning_rate": settings.lr,
        "lr_scheduler_type": settings.schedule,
        "max_grad_norm": settings.max_grad_norm,
        "max_steps": settings.updates,
        "shuffle_dataset": False,
    } | trainer_arguments(settings, ctx, states)


def _record(
    trainer: ShortARCTrainer,
    env: Environment,
    asked: Environment | None,
    measured: dict[str, dict[str, DrawnAnswers]],
    ctx: Context,
) -> None:
    """Tables of the ledger: updates, difficulty, what was counted, and answers to read."""
    rows = [
        {"step": entry["step"]}
        | {name: float(entry[key]) for name, key in LOGGED.items() if entry.get(key) is not None}
        for entry in trainer.state.log_history
        if "ratio/furthest" in entry  # of every update, also of those on answers that were drawn for an earlier one
    ]
    ctx.ledger.table("rl_training", rows)
    ctx.ledger.table("rl_solved", _solved(trainer))
    if trainer.ages:
        answers = [{"staleness": age, "answers": number} for age, number in sorted(trainer.ages.items())]
        ctx.ledger.table("rl_staleness", answers)
    forwarded, left = trainer.forwarded_rows, trainer.left_out_rows
    counted = {
        "drawn tokens": trainer.drawn_tokens,
        "answers forwarded": forwarded,
        "answers without advantage, not forwarded": left,
        **({"answers to problems in the places of others": trainer.answers_drawn_again} if trainer.args.refill else {}),
    } | {f"answers whose judging failed: {why}": number for why, number in env.failures.items()}
    ctx.ledger.table("rl_counts", [{"what": what, "number": number} for what, number in counted.items()])
    if asked is None:
        return
    by_difficulty = [
        {"when": when} | row
        for when, found in measured.items()
        for how, drawn in found.items()
        for row in drawn.table(how)
    ]
    ctx.ledger.table("rl_difficulty", by_difficulty)
    ctx.ledger.table("rl_answers", _shown(asked, measured))
    first, last = (measured[when]["sampled"].table("sampled")[-1] for when in ("before", "after"))
    ctx.progress.log(
        f"held-out problems, sampled: accuracy {first['accuracy']:.3f} -> {last['accuracy']:.3f}, "
        f"tokens {first['tokens']:.1f} -> {last['tokens']:.1f}"
    )


def _solved(trainer: ShortARCTrainer) -> list[dict[str, Any]]:
    """How many of a problem's answers were right, in the first and in the last quarter of the updates."""
    several = int(trainer.num_generations or 1)
    entries = [entry for entry in trainer.state.log_history if "accuracy" in entry]
    size = max(1, len(entries) // 4)
    found = []
    for part, some in (("first quarter", entries[:size]), ("last quarter", entries[-size:])):
        for count in range(several + 1):
            shares = [float(entry[f"solved/{count}"]) for entry in some]
            tokens = [
                (entry[f"solved_tokens/{count}"], share)
                for entry, share in zip(some, shares, strict=True)
                if entry.get(f"solved_tokens/{count}") is not None
            ]
            row: dict[str, Any] = {"part": part, "right": count, "of": several}
            row["problems"] = sum(shares) / len(shares)
            if tokens:
                row["tokens"] = sum(one * share for one, share in tokens) / sum(share for _, share in tokens)
            found.append(row)
    return found


def _write_pages(read_later: ReadLater, model: Model, ctx: Context) -> None:
    """Pages of what was drawn, beside the ledger."""
    if ctx.ledger.directory is None:
        return
    place = ctx.ledger.directory / "drawn" / ctx.ledger.node
    place.mkdir(parents=True, exist_ok=True)
    for name, content in pages(read_later.rows, model.tokenizer, lambda: len(read_later.kept), WORDING):
        page.write(place / name, content)


def _shown(asked: Environment, measured: dict[str, dict[str, DrawnAnswers]]) -> list[dict[str, Any]]:
    """A few answers of every difficulty, before and after, for a person to read."""
    count = len(asked.problems)
    places = torch.linspace(0, count - 1, min(SHOWN, count)).long().tolist()
    return [
        {
            "question": asked.problems[place]["question"],
            "when": when,
            "answer": found["sampled"].texts[place],
            "right": bool(found["sampled"].correct[place]),
            "tokens": int(found["sampled"].tokens[place]),
        }
        for place in places
        for when, found in measured.items()
    ]
