"""What conversions to a class of our own share: no stock class computes what they make, so it has a type of its own.

See `burnish.core.checkpoint.own_classes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from burnish.arch import describe
from burnish.arch.blocks import NORMS
from burnish.arch.row import NormPart
from burnish.core.checkpoint import unfilled
from burnish.core.checkpoint.own_classes import NOT_STOCK, network_class
from burnish.core.errors import SettingsError
from burnish.core.kinds import Kind, Plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from burnish.core.checkpoint import Model

NO_ENGINE = f"{NOT_STOCK}, and so does vLLM; SGLang, TGI and llama.cpp do not load it"


def check_residuals(config: PretrainedConfig, what: str) -> None:
    """Refuses layers that are not attention and MLP, each with its norm in front, added as they are.

    Raises:
        SettingsError: with `what` in front.
    """
    norms = {part for part in describe(config).row.parts if isinstance(part, NormPart) and "." not in part.module}
    if norms != set(NORMS) or getattr(config, "residual_multiplier", 1.0) != 1.0:
        raise SettingsError(f"{what}: its attention and MLP are not added to the stream behind a norm, as they are")


def own_config(config: PretrainedConfig, prefix: str, **settings: Any) -> Any:
    """The configuration of our class for the source's.

    Args:
        config: of the source.
        prefix: of `own_classes`.
        settings: that our class has besides.
    """
    same = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    return network_class(prefix + config.model_type).config_class.from_dict(same | settings)


def own_network(module: PreTrainedModel, config: Any) -> Any:
    """The network of a configuration from `own_config` with the module's weights, in evaluation mode, sharing no
    memory."""
    new = unfilled(network_class(config.model_type), config, module)
    new.load_state_dict(module.state_dict())
    return new


def own_model(model: Model, network: Any) -> Model:
    """A model made of another, with the kind that says so."""
    made = model.derive(module=network)
    made.lineage.kind = Kind.CUSTOM_CAUSAL_LM
    return made


def own_plan(before: Plan, config: Any, *, custom_code: bool, peak_memory_bytes: int, note: str) -> Plan:
    """Sizes stay; what is made is of a class of its own.

    Raises:
        SettingsError: nobody said that this is wanted.
    """
    if not custom_code:
        raise SettingsError(NO_ENGINE, where="custom_code", fix="pass --custom-code if that is wanted")
    return before.with_(
        config=config,
        kind=Kind.CUSTOM_CAUSAL_LM,
        peak_memory_bytes=peak_memory_bytes,
        notes=(*before.notes, f"{note}: {NO_ENGINE}"),
    )
