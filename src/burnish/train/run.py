"""What the stage `train` does: rows from data, an optimizer for the model, the loop, an ordinary checkpoint."""

from __future__ import annotations

import copy
import fnmatch
import math
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from burnish.arch import head_of
from burnish.arch.attention import use
from burnish.core.checkpoint import Model, cast
from burnish.core.checkpoint.adapter import Adapter, without_adapter
from burnish.core.checkpoint.packed_integers import check_whole_numbers, quantization_config
from burnish.core.errors import DataError, SettingsError
from burnish.core.kinds import Weights
from burnish.core.stage import Context
from burnish.core.store import Key
from burnish.data import check_disjoint
from burnish.data.packing import IGNORED, PackedRows
from burnish.optim import optimizer_class
from burnish.optim.constrained.pstorm import PStorm
from burnish.optim.wsam import WSAM
from burnish.train.attention import chosen
from burnish.train.bound import Bounded
from burnish.train.kept_weights import KeptWeights
from burnish.train.loop import Loop, Rows, fit
from burnish.train.lora import keep_adapter, merged, with_adapters
from burnish.train.losses import HeadLoss, LossFn, WithParameters, balanced_loss, causal_lm_loss
from burnish.train.maths.schedule import Schedule
from burnish.train.objective import Objective
from burnish.train.objective_cost import tell_cost
from burnish.train.rope import rescale
from burnish.train.rows import any_large, on_disk, packed
from burnish.train.speed import speed_of
from burnish.train.trackers import DIRECTORY, Trackers, tracker_names
from burnish.train.watch import Watch
from burnish.train.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.optim.optimizer import MatrixOptimizer
    from burnish.train.stage import Train


def run(
    settings: Train,
    model: Model,
    ctx: Context,
    *,
    loss_of: Callable[[Any], LossFn] | None = None,
    weighted: bool = False,
    prepare: Callable[[PackedRows, str], Rows] = lambda rows, name: rows,
    beside: nn.ParameterList | None = None,
    key: Key = MappingProxyType({}),
    watch: Watch | None = None,
) -> Model:
    """Trains a copy of `model` on `ctx.inputs["data"]`; its weights come back in the dtype they had.

    Args:
        settings: how to train.
        model: the start.
        ctx: of the stage.
        loss_of: (the model to train) -> what is minimised in place of the next-token loss (distillation, say).
        weighted: whether that loss knows the weights that rows may give their tokens.
        prepare: (rows, "data" or "validation") -> what the loop takes batches from, before the model is loaded;
            for losses that need more in a batch than tokens.
        beside: parameters of the loss itself, which finds them as `model.beside`; trained by AdamW with the model, kept
            in the states of the training, and left behind at its end.
        key: what the result depends on beside the model, the data and the settings, by name (the teacher, say).
        watch: what looks at the model on the way, and may end the training.

    Raises:
        DataError: no data, nothing to learn from, or token ids that the model does not have.
        SettingsError, NumericalError, CheckpointError, OutputError: see `burnish.train.loop.fit`.
    """
    from burnish.train.distributed import world

    with world(ctx.device, settings.sequence_parallel) as processes:
        return _run(settings, model, ctx, loss_of, weighted, prepare, beside, key, watch, processes)


def _run(
    settings: Train,
    model: Model,
    ctx: Context,
    loss_of: Callable[[Any], LossFn] | None,
    weighted: bool,
    prepare: Callable[[PackedRows, str], Rows],
    beside: nn.ParameterList | None,
    key: Key,
    watch: Watch | None,
    world: World,
) -> Model:
    config = settings.scaled(model.config)
    settings.check(config)
    check_processes(settings, ctx, beside, world, own_loss=loss_of is not None)
    attention = attention_of(settings, ctx.device)
    rows, held_out, bounded = all_rows(settings, model.tokenizer, ctx, world)
    check_weights_known(settings, rows, known=weighted or loss_of is None, unlearns=loss_of is None)
    batches = prepare(rows, "data")
    validation = None if held_out is None else prepare(held_out.spread(settings.validation_rows), "validation")
    module = started(settings, model, config, ctx)
    for read in [rows] if bounded is None else [rows, bounded.rows]:
        check_vocabulary(module, read)
    own = use(module, attention, ctx.progress)
    loss_fn = loss_of(module) if loss_of else own_loss(settings, module, rows, model, ctx, world)
    if bounded is not None:
        bounded = replace(bounded, loss_fn=next_token_loss_of(settings, module))
    module = prepared(settings, module, rows, attention, world, model.adapter)
    loop = loop_of(settings, settings.num_steps(len(rows)), ctx.device)
    tell_cost(settings, module, loss_fn, rows, model.plan(), ctx, world, steps=loop.steps)
    trained = module if beside is None else WithParameters(module, beside.to(torch.device(ctx.device)))
    speed = speed_of(module, settings.context, device=ctx.device, precision=loop.precision)
    trained = world.shard(trained, loop.precision)
    optimizer = make_optimizer(settings, module)
    add_beside(optimizer, trained)
    said = f"{rows.num_targets:,} tokens in {len(rows):,} rows: {loop.steps:,} steps of {loop.batch_size} rows"
    ctx.progress.log(f"training on {said}")
    fitted = fit(
        trained,
        batches,
        loss_fn,
        optimizer,
        ctx,
        loop,
        validation=validation,
        world=world,
        key=key_of(settings, model, key),
        bounded=bounded,
        speed=speed,
        trackers=trackers_of(settings, ctx),
        watch=watch,
    )
    if (whole := world.whole(trained)) is None:  # another process has the result
        return model
    result = result_of(settings, model, whole.model if isinstance(whole, WithParameters) else whole, own, ctx)
    result.lineage.continued = fitted.changes
    return result


def result_of(settings: Train, model: Model, trained: Any, attention: str, ctx: Context) -> Model:
    """The model with what its copy has learned: in its weights, or in an adapter beside them."""
    if settings.keep_adapter:
        keep_adapter(trained, ctx.work_dir, model.name)
    if stays_beside(settings, model):
        return model.with_adapter(Adapter.trained(trained, dtype=model.module.dtype))
    return model.derive(module=cast(finished(settings, trained, attention), model.module.dtype).eval())


def stays_beside(settings: Train, model: Model) -> bool:
    """Whether the adapter that is trained is left beside the weights, which are packed or have one already.

    Raises:
        SettingsError: they are packed as something else than whole numbers.
    """
    is_packed = bool(model.packed) or model.lineage.weights is Weights.PACKED
    if not settings.lora_rank or not (is_packed or model.adapter is not None):
        return False
    if is_packed:
        check_whole_numbers(quantization_config(model), purpose="adapters are trained beside")
    return True


def started(settings: Train, model: Model, config: Any, ctx: Context) -> Any:
    """A copy of the model on its device, at the positions of `config`.

    Its weights are float32 whatever the checkpoint has: bfloat16 would round small updates away.
    """
    module: Any = copy.deepcopy(model.module)
    if model.adapter is not None:
        without_adapter(module)
    module = module.float().to(torch.device(ctx.device))
    if settings.rope_scaling is not None:
        rescale(module, config)
    return module


def check_processes(
    settings: Train, ctx: Context, beside: nn.ParameterList | None, world: World, *, own_loss: bool
) -> None:
    """Refuses what one process alone can do where there are several."""
    if world.size == 1:
        return
    if world.sequence is not None and own_loss:
        what = f"{settings.name} has a loss of its own, which looks at whole rows"
        raise SettingsError(what, where="sequence_parallel", fix="leave sequence_parallel out")
    if settings.optimizer == "pstorm":
        raise SettingsError("pstorm steps in one process only", where="optimizer", fix="leave `launch` out")
    if settings.lora_experts != "none":
        what = "adapters on experts are trained by one process only"
        raise SettingsError(what, where="lora_experts", fix="leave `launch` out")
    if settings.sharpness:
        raise SettingsError("sharpness is for one process only", where="sharpness", fix="leave `launch` out")
    if beside is not None:
        raise SettingsError(
            "parameters of the loss itself (projections between hidden states) are trained by one process only",
            fix="leave `launch` out of this node",
        )
    if ctx.inputs.get("bound_data") is not None:
        raise SettingsError("a bound is kept by one process only", where="bound_data", fix="leave `launch` out")


def check_weights_known(settings: Train, rows: PackedRows, *, known: bool, unlearns: bool) -> None:
    """Refuses weights of tokens where the loss does not know them: they would count for nothing, or the wrong way."""
    if rows.is_weighted and not known:
        what = f"has rows with weights of tokens, which this loss of {settings.name} does not know"
        raise DataError(what, where="data", fix="make the rows again without weights")
    if rows.unlearns and (not unlearns or (settings.objective and Objective.of(settings.objective).is_long)):
        loss = f"objective {settings.objective}" if unlearns else f"this loss of {settings.name}"
        what = f"has tokens to unlearn, whose weights are below 0, and {loss} does not know how"
        raise DataError(what, where="data", fix="make the rows again without failed episodes")


def prepared(
    settings: Train, module: Any, rows: PackedRows, attention: str, world: World, adapter: Adapter | None
) -> Any:
    """The model as it is trained: on shared rows, with adapters, with activations computed again, as settings say."""
    if world.sequence is not None:
        world.sequence.attend(module, attention)
    if settings.only is not None:
        freeze_all_but(module, settings.only)
    if settings.lora_rank:
        module = with_adapters(module, settings, rows, adapter)
    if settings.activation_checkpointing:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return module


def freeze_all_but(module: nn.Module, patterns: str) -> None:
    """Leaves the parameters whose names fit one of the patterns to be trained.

    Args:
        module: the model.
        patterns: as of file names, separated by commas; "routers" stands for what decides which experts a token uses.

    Raises:
        SettingsError: no name fits one of them.
    """
    names, chosen = [name for name, _ in module.named_parameters()], set[str]()
    for pattern in (part.strip() for part in patterns.split(",")):
        fitting = _routers(module) if pattern == "routers" else fnmatch.filter(names, pattern)
        if not fitting and pattern == "routers":
            raise SettingsError(
                "the model has no routers, as it is no mixture of experts",
                where="only",
                fix="leave only out, or name parameters: --only '*.mlp.*'",
            )
        if not fitting:
            raise SettingsError(
                f"no parameter has a name that fits {pattern!r}; the last ones are {', '.join(names[-3:])}",
                where="only",
                fix="'*' stands for anything: --only '*.mlp.gate.*'",
            )
        chosen.update(fitting)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)


def _routers(module: Any) -> list[str]:
    """Names of the parameters of routers."""
    from burnish.arch import matrices

    views = matrices(module, complete=False)
    owners = {id(view.owner) for view in views if view.role == "router"}
    parts = ((name, part) for name, part in module.named_modules() if id(part) in owners)
    return [f"{name}.{own}" for name, part in parts for own, _ in part.named_parameters(recurse=False)]


def finished(settings: Train, module: Any, attention: str) -> Any:
    """The model alone, as it was before `prepared` and with the attention of before, with what it has learned."""
    if settings.activation_checkpointing:
        module.gradient_checkpointing_disable()
    module = merged(module) if settings.lora_rank else module
    if settings.only is not None:
        module.requires_grad_(True)
    use(module, attention)
    return module


def all_rows(
    settings: Train, tokenizer: PreTrainedTokenizerBase, ctx: Context, world: World
) -> tuple[PackedRows, PackedRows | None, Bounded | None]:
    """To train on, to measure on, and whose loss is bounded; what is large one process reads, and then the others."""
    with world.in_turn() if any_large(ctx.inputs) else nullcontext():
        here = on_disk(ctx)
        return *training_rows(settings, tokenizer, here), bounded_rows(settings, tokenizer, here)


def training_rows(
    settings: Train, tokenizer: PreTrainedTokenizerBase, ctx: Context
) -> tuple[PackedRows, PackedRows | None]:
    """Rows to train on, and rows to measure on where they are asked for."""
    data = ctx.inputs.get("data")
    if data is None:
        raise DataError("there is no data to train on", where="data", fix="give data: FILE, or --data FILE")
    rows = packed(settings, tokenizer, data, ctx, where="data")
    validation = ctx.inputs.get("validation")
    if validation is not None:
        check_disjoint(data, validation)
        return rows, packed(settings, tokenizer, validation, ctx, where="validation")
    if not settings.holdout:
        return rows, None
    count = round(settings.holdout * len(rows))
    if not 0 < count < len(rows):
        purpose = "measure on" if count == 0 else "train on"
        raise DataError(
            f"holdout {settings.holdout:g} of {len(rows)} rows leaves none to {purpose}",
            where="data",
            fix="use more data or another share",
        )
    return rows.split(count)


def bounded_rows(settings: Train, tokenizer: PreTrainedTokenizerBase, ctx: Context) -> Bounded | None:
    """The rows whose loss is bounded, where there are any; the last ones are held out.

    Raises:
        SettingsError: there is no level, or no data.
        DataError: too few rows, or texts that are trained on as well.
    """
    data = ctx.inputs.get("bound_data")
    limited = settings.bound_level is not None or settings.bound_rise is not None
    if data is None and not limited:
        return None
    if data is None or not limited:
        missing = "bound_data" if data is None else "bound_level or bound_rise"
        raise SettingsError(f"a bound needs {missing}", where=missing.split()[0], fix=f"give {missing}")
    check_disjoint(ctx.inputs["data"], data)
    rows = packed(settings, tokenizer, data, ctx, where="bound_data")
    count = max(1, round(settings.bound_holdout * len(rows)))
    if count >= len(rows):
        raise DataError(
            f"bound_holdout {settings.bound_holdout:g} of {len(rows)} rows leaves none to train on",
            where="bound_data",
            fix="use more data",
        )
    kept, held_out = rows.split(count)
    return Bounded(
        kept,
        held_out,
        settings.bound_level,
        settings.bound_rise,
        settings.bound_penalty,
        settings.bound_batch or settings.batch,
        settings.micro_batch,
        settings.bound_every,
        settings.seed,
    )


def check_vocabulary(module: Any, rows: PackedRows) -> None:
    """Refuses token ids beyond the embedding: the tokenizer belongs to another model."""
    known = module.get_input_embeddings().num_embeddings
    largest = int(rows.input_ids.max())
    if largest >= known:
        raise DataError(
            f"the tokenizer makes token id {largest:,}, but the model has {known:,} embeddings",
            fix="use the tokenizer that the model was trained with",
        )


def trackers_of(settings: Train, ctx: Context) -> Trackers:
    """Where the loss table goes beside the ledger."""
    return Trackers(
        tracker_names(settings.report_to),
        ctx.work_dir / DIRECTORY,
        f"{settings.name} {ctx.work_dir.name}",
        settings.canonical(),
        ctx.progress,
    )


def attention_of(settings: Train, device: str) -> str:
    """What transformers calls the attention of the settings; an empty name leaves the model's own."""
    masked = settings.objective is not None and Objective.of(settings.objective).is_long
    return chosen(settings.attention, device, precision_of(settings, device), masked=masked)


def balance_of(settings: Train, module: Any) -> float:
    """The coefficient of the load-balancing loss of the model's experts.

    Raises:
        SettingsError: one is set, and the model has no such loss.
    """
    own = getattr(module.config.get_text_config(), "router_aux_loss_coef", None)
    if own is None and settings.balance:
        raise SettingsError("the model has no load-balancing loss", where="balance", fix="leave balance out")
    return (own if settings.balance is None else settings.balance) or 0.0


def next_token_loss_of(settings: Train, module: Any, balance: float = 0.0) -> LossFn:
    """Next-token loss, with the load-balancing loss times `balance`.

    All logits are in memory only where the model's head is of a kind that is not known, and under torch.compile.
    """
    head = None if settings.compile else head_of(module)
    if head is not None:
        return HeadLoss(head, balance)
    return balanced_loss(balance) if balance else causal_lm_loss


def own_loss(settings: Train, module: Any, rows: PackedRows, model: Model, ctx: Context, world: World) -> LossFn:
    """The next-token loss, or that of the objective where the settings have one.

    Args:
        settings: of the training.
        module: the model to train, which is tried: whether it does with masks and positions what an objective needs.
        rows: to train on.
        model: the start, for what an objective costs.
        ctx: where that is said, and where weights of tokens are kept.
        world: of processes, which share what is kept.

    Raises:
        SettingsError: the model does not, its head is not known, or the training ends before the objective begins.
    """
    plain = next_token_loss_of(settings, module, balance_of(settings, module))
    if settings.objective is None:
        return plain
    from burnish.train.focal import Focal
    from burnish.train.long_context import LongContext
    from burnish.train.mask_proof import prove
    from burnish.train.views import longest_document

    objective = Objective.of(settings.objective)
    if not isinstance(plain, HeadLoss):
        what = f"{type(module).__name__} has a head that is not known, so that its logits would all be in memory"
        raise SettingsError(what, where="objective", fix="leave it out")
    added = settings.added(model.plan(), len(rows))
    said = f"the objective is expected to take {added:.0%} more operations than the plain loss"
    first_pass = math.ceil(len(rows) / settings.batch)
    later = "drop_top" if objective.drop_top is not None else "cache" if objective.cache else None
    if later is not None and settings.num_steps(len(rows)) <= first_pass:
        raise SettingsError(
            f"{later} begins with the second pass over the data, and the first takes all {first_pass:,} steps of this "
            "training, so it would count for nothing",
            where="objective",
            fix=f"raise epochs or steps, or leave {later} out",
        )
    if not objective.is_long:
        ctx.progress.log(said)
        return Focal(plain, objective.focal, objective.drop_top, first_pass)
    attention: str = module.config._attn_implementation
    prove(module, objective, attention)
    longest = longest_document(rows.position_ids, rows.targets != IGNORED)
    if objective.weights != "none" and longest <= objective.window + objective.sinks:
        ctx.progress.log(
            f"the longest document has {longest:,} tokens, all of them within window and sinks: every weight is one, "
            "and nothing is computed for it"
        )
        if objective.view == "none":
            return plain
        objective = objective.model_copy(update={"weights": "none", "cache": False})
    ctx.progress.log(said)
    kept = None
    if objective.cache:
        key = {"model": model.identity, "data": rows.hash, "objective": settings.objective, "seed": settings.seed}
        with world.in_turn():
            kept = KeptWeights.opened(ctx.work_dir, key, (len(rows), rows.length), first_pass)
    return LongContext(objective, plain, attention, settings.seed, kept)


def class_of(name: str) -> type[MatrixOptimizer | PStorm]:
    """The class of an optimizer of the settings."""
    return PStorm if name == "pstorm" else optimizer_class(name)


def make_optimizer(settings: Train, module: nn.Module) -> MatrixOptimizer | PStorm | WSAM:
    """The optimizer of the settings, with every parameter routed."""
    options = dict(settings.optimizer_options)
    if settings.optimizer == "pstorm":
        limit, decay = settings.max_grad_norm, settings.weight_decay
        return PStorm.for_model(module, settings.lr, weight_decay=decay, max_norm=limit, **options)
    if settings.optimizer != "adamw":
        options["adamw_lr"] = settings.adamw_lr
    elif settings.adamw_lr is not None:
        raise SettingsError("with optimizer adamw there is only lr", where="adamw_lr", fix="leave adamw_lr out")
    made = optimizer_class(settings.optimizer).for_model(
        module,
        settings.lr,
        split=settings.split_fused,
        lora=settings.lora_matrix,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        **options,
    )
    if not settings.sharpness:
        return made
    return WSAM(made, gamma=settings.sharpness, rho=settings.sharpness_rho, model=module)


def key_of(settings: Train, model: Model, key: Key) -> dict[str, Any]:
    """What the trained weights depend on beside the data."""
    return settings.canonical() | {"stage": f"{settings.name} {settings.version}", "model": model.identity} | dict(key)


def add_beside(optimizer: MatrixOptimizer | PStorm | WSAM, trained: nn.Module) -> None:
    """Parameters of the loss itself, where there are some, are AdamW's."""
    names = [(name, parameter) for name, parameter in trained.named_parameters() if name.startswith("beside.")]
    if not names:
        return
    if isinstance(optimizer, PStorm):
        raise SettingsError(
            "pstorm does not train the projections between hidden states of different sizes",
            where="optimizer",
            fix="use another optimizer, or leave hidden out",
        )
    optimizer.add_param_group({"params": names, "algorithm": "adamw"})


def precision_of(settings: Train, device: str) -> Literal["float32", "bfloat16"]:
    """Of the products."""
    if settings.precision == "auto":
        return "bfloat16" if device.startswith("cuda") else "float32"
    return settings.precision


def loop_of(settings: Train, steps: int, device: str) -> Loop:
    """The loop's part of the settings.

    Raises:
        SettingsError: `compile` on a CPU without a C++ compiler.
    """
    if settings.compile and device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise SettingsError(
            "torch.compile builds C++ code on a CPU, and there is no C++ compiler here",
            where="compile",
            fix="install g++ or name another one in the environment variable CXX, or leave compile out",
        )
    return Loop(
        steps=steps,
        batch_size=settings.batch,
        micro_batch_size=settings.micro_batch,
        schedule=Schedule(settings.schedule, settings.warmup, settings.final_lr, settings.decay),
        max_grad_norm=settings.max_grad_norm,
        precision=precision_of(settings, device),
        on_nonfinite=settings.on_nonfinite,
        eval_every=settings.eval_every,
        keep_best=settings.keep_best,
        save_every=settings.save_every,
        save_async=settings.save_async,
        compile=settings.compile,
        seed=settings.seed,
    )
