"""Networks that stock transformers has no class for, of classes of ours.

Their checkpoints name a `model_type` that no engine knows, so that none computes them as something else without a word,
and hold the files with the classes, for who runs them with `trust_remote_code=True`. Burnish reads them with its own
copy of those files, never with theirs.
"""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

LADDER, SWIFTKV = "ladder_", "swiftkv_"
"""Of a `model_type` of such a class; behind it stands that of the stock class with the same weights."""
MODULES = {LADDER: "modeling_ladder", SWIFTKV: "modeling_swiftkv"}
"""All of these classes; each file needs torch, transformers and `SHARED` beside it."""
SHARED = "derived_classes"
NOT_STOCK = (
    "no library has a class for it: transformers loads it with trust_remote_code=True alone, by the files beside the "
    "weights"
)


def _prefix(model_type: str) -> str | None:
    return next((prefix for prefix in MODULES if model_type.startswith(prefix)), None)


def is_own(model_type: str) -> bool:
    return _prefix(model_type) is not None


def plain_type(model_type: str) -> str:
    """The `model_type` whose weights a network has, under the same names; its own where stock transformers has it."""
    return model_type.removeprefix(_prefix(model_type) or "")


def own_setting(model_type: str) -> str | None:
    """The setting that a configuration of a class of ours has besides; None where stock transformers has the class."""
    prefix = _prefix(model_type)
    return import_module(f"burnish.core.checkpoint.{MODULES[prefix]}").FAMILY.setting[0] if prefix else None


def splits_the_stream(model_type: str) -> bool:
    """Whether layers hand on a part of the residual stream later, so that what comes between them is not all of it."""
    return _prefix(model_type) == LADDER


def network_class(model_type: str) -> Any:
    """A class of ours by its `model_type`, made known to transformers' automatic classes in this process.

    Returns:
        The class of the causal language model; its `config_class` is that of the configuration. None where there is no
        stock class beneath it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    names = auto_map(model_type)
    if names is None:
        return None
    module, _, name = names["AutoModelForCausalLM"].partition(".")
    found = import_module(f"burnish.core.checkpoint.{module}").FAMILY.find(name)
    AutoConfig.register(model_type, found.config_class, exist_ok=True)
    AutoModelForCausalLM.register(found.config_class, found, exist_ok=True)
    return found


def auto_map(model_type: str) -> dict[str, str] | None:
    """What config.json says of the files, for transformers; None for what is no network of a class of ours."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    prefix, plain = _prefix(model_type), plain_type(model_type)
    names = {
        "AutoConfig": CONFIG_MAPPING_NAMES.get(plain),
        "AutoModel": MODEL_MAPPING_NAMES.get(plain),
        "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(plain),
    }
    if prefix is None or not all(isinstance(name, str) for name in names.values()):
        return None
    family = import_module(f"burnish.core.checkpoint.{MODULES[prefix]}").FAMILY
    return {auto: f"{MODULES[prefix]}.{family.prefix}{name}" for auto, name in names.items()}


def write_code(model_type: str, directory: Path) -> None:
    """Puts the files with the class beside the weights, where it is one of ours."""
    prefix = _prefix(model_type)
    if prefix is not None:
        for module in (MODULES[prefix], SHARED):
            shutil.copyfile(Path(__file__).with_name(f"{module}.py"), directory / f"{module}.py")
