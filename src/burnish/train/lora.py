"""LoRA by the package peft: adapters on, trained, merged back, so that what comes out is an ordinary checkpoint.

Beside packed weights they stay adapters, see `burnish.core.checkpoint.adapter`.

Source: LoRA (2021, arXiv:2106.09685); starts: PiSSA (2024, arXiv:2404.02948), OLoRA (2024, arXiv:2406.01775), CorDA
(2024, arXiv:2406.05223).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from burnish.core.checkpoint.adapter import DIRECTORY, Adapter
from burnish.core.errors import MissingExtraError, OutputError, SettingsError
from burnish.train.losses import model_inputs
from burnish.train.moe_lora import expert_parameters, share, write_out

if TYPE_CHECKING:
    from burnish.data.packing import PackedRows
    from burnish.train.stage import Train

MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
"""Models of which peft refuses `out_proj`."""

CORDA_ROWS = 32
"""Rows that CorDA takes its input covariances from."""


def with_adapters(
    module: nn.Module, settings: Train, rows: PackedRows | None, adapter: Adapter | None = None
) -> nn.Module:
    """The model with adapters, everything else frozen. The draw of their start depends on the seed only.

    Args:
        module: the model.
        settings: rank, scale, targets and start.
        rows: what the start "corda" looks at; the others need none.
        adapter: one that lies beside the weights, whose training goes on.

    Raises:
        MissingExtraError: peft is not installed.
        SettingsError: no module has one of the names in `lora_targets`, or there are no experts to give adapters to.
    """
    try:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora.config import CordaConfig
        from peft.tuners.lora.corda import preprocess_corda
    except ImportError:
        raise MissingExtraError("peft", "train", "LoRA") from None
    if adapter is not None:
        check_goes_on(settings, adapter.config)
        known: Any = module
        adapted = get_peft_model(known, adapter.lora_config(trained=True))
        adapter.fill(adapted, where=DIRECTORY)
        return adapted
    names = settings.lora_targets
    targets = _targets(module, names)
    check_vocabulary(module, targets)
    experts = expert_parameters(module) if settings.lora_experts != "none" else {}
    start: Any = True if settings.lora_init == "default" else settings.lora_init
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,  # pyright: ignore[reportArgumentType]
        target_modules=targets,
        target_parameters=list(experts) or None,
        init_lora_weights=start,
        corda_config=CordaConfig(corda_method="ipm") if settings.lora_init == "corda" else None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            if settings.lora_init == "corda":
                assert rows is not None, "corda looks at the data"
                preprocess_corda(module, config, run_model=lambda: _run(module, rows))
            adapted = get_peft_model(module, config)  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            if "arget modules" not in str(error):
                raise
            raise SettingsError(
                f"the model has no modules named {names}", where="lora_targets", fix="use all-linear"
            ) from None
    if settings.lora_experts == "shared":
        share(adapted, experts)
    return adapted


def check_goes_on(settings: Train, config: Mapping[str, Any]) -> None:
    """Refuses settings of another adapter than the one whose training goes on, whose configuration this is.

    Raises:
        SettingsError: naming the setting.
    """
    if settings.lora_rank != config["r"]:
        what = f"lora_rank is {settings.lora_rank}, but the adapter beside the weights has rank {config['r']}"
        raise SettingsError(what, where="lora_rank", fix=f"use {config['r']}, or start from weights without an adapter")
    given = {"lora_alpha": settings.lora_alpha is not None, "lora_targets": settings.lora_targets != "all-linear"}
    if own := [name for name, value in given.items() if value]:
        what = f"{own[0]} is that of the adapter beside the weights, whose training goes on"
        raise SettingsError(what, where=own[0], fix="leave it out")


def check_adapters(module: Any, names: str, rank: int, *, experts: bool = False) -> None:
    """Refuses targets that no module has, and a rank that no matrix has.

    Args:
        module: the model; its weights are not looked at.
        names: as in the settings.
        rank: of the adapters.
        experts: whether routed experts get some too.

    Raises:
        SettingsError: naming what there is.
    """
    if experts:
        expert_parameters(module)
    sides = []
    targets = _targets(module, names)
    check_vocabulary(module, targets)
    for target in targets:
        fitting = _fitting(module, target)
        if not fitting:
            raise SettingsError(
                f"the model has no modules named {target!r}",
                where="lora_targets",
                fix=f"use all-linear, or some of {', '.join(_linear_names(module))}",
            )
        sides += [min(part.weight.shape) for part in fitting if getattr(part, "weight", None) is not None]
    if sides and rank > max(sides):
        raise SettingsError(
            f"lora_rank is {rank:,}, but no matrix that would get adapters has a rank above {max(sides):,}",
            where="lora_rank",
            fix="use 8 to 64, or lora_rank 0 to train all weights",
        )


def check_vocabulary(module: Any, targets: Sequence[str]) -> None:
    """Refuses adapters that would be lost: of the output head, whose own weight the losses take without its module, and
    of an embedding that is the head too, where adding them to the weight would change both.

    Raises:
        SettingsError: naming the module.
    """
    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    for target in targets:
        fitting = _fitting(module, target)
        if head in fitting:
            reason = "is the output head, and the loss is computed of its weight without an adapter"
        elif tied and embedding in fitting:
            reason = "is the output head too (tie_word_embeddings), which an adapter of the embedding would change"
        else:
            continue
        raise SettingsError(f"{target} {reason}", where="lora_targets", fix="leave it out, or use all-linear")


def _targets(module: Any, names: str) -> list[str]:
    return _linear_names(module) if names == "all-linear" else [name.strip() for name in names.split(",")]


def _fitting(module: nn.Module, target: str) -> list[Any]:
    """The modules that go by a name, or by the last parts of one."""
    return [m for n, m in module.named_modules() if target and (n == target or n.endswith(f".{target}"))]


@torch.no_grad()
def _run(module: nn.Module, rows: PackedRows) -> None:
    device = next(module.parameters()).device
    for row in range(min(CORDA_ROWS, len(rows))):
        module(**model_inputs({name: tensor.to(device) for name, tensor in rows.take([row]).items()}))


def _linear_names(module: Any) -> list[str]:
    """Last names of all linear layers but the output head; peft's own "all-linear" does not reach CorDA.

    A router that is a linear layer by its class gives more than one tensor, which an adapter cannot be added to; the
    kernels of Mamba take the weight of `out_proj` without asking its module, so that peft refuses it.
    """
    from transformers.pytorch_utils import Conv1D

    head = module.get_output_embeddings()
    kinds = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    names = {name.rpartition(".")[2] for name, m in kinds if not type(m).__name__.endswith("Router")}
    return sorted(names - {"out_proj"} if module.config.model_type in MAMBA else names)


def merged(module: Any) -> nn.Module:
    """The model with the adapters added to its weights."""
    write_out(module)
    return module.merge_and_unload()


def keep_adapter(module: Any, directory: Path, base: str) -> None:
    """Writes the adapters alone, as peft reads them: `PeftModel.from_pretrained(model, DIRECTORY / "adapter")`.

    Args:
        module: with its adapters.
        directory: where they go to, in place of others.
        base: what the model is called that the adapters were trained for.

    Raises:
        OutputError: no room or no permission.
    """
    write_out(module)
    try:
        Adapter.trained(module, dtype=torch.float32, base=base).write(directory)
    except OSError as error:
        raise OutputError(f"the adapters could not be written ({error})", where=str(directory)) from None
