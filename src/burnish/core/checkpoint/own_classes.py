"""Networks that stock transformers has no class for, of classes of ours.

Their checkpoints name a `model_type` that no engine knows, so that none computes them as something else without a word,
and hold the file with the classes, for who runs it with `trust_remote_code=True`. Burnish reads them with its own copy
of that file, never with theirs.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

PREFIX = "ladder_"
"""Of a `model_type` of such a class; behind it stands that of the stock class with the same weights."""
CODE = Path(__file__).with_name("modeling_ladder.py")
"""All of these classes; needs torch and transformers alone."""
NOT_STOCK = (
    "no library has a class for it: transformers loads it with trust_remote_code=True alone, by the file "
    f"{CODE.name} beside the weights"
)


def is_own(model_type: str) -> bool:
    return model_type.startswith(PREFIX)


def plain_type(model_type: str) -> str:
    """The `model_type` whose weights a network has, under the same names; its own where stock transformers has it."""
    return model_type.removeprefix(PREFIX)


def network_class(model_type: str) -> Any:
    """A class of ours by its `model_type`, made known to transformers' automatic classes in this process.

    Returns:
        The class of the causal language model; its `config_class` is that of the configuration. None where there is no
        stock class beneath it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from burnish.core.checkpoint import modeling_ladder

    names = auto_map(model_type)
    if names is None:
        return None
    found = getattr(modeling_ladder, names["AutoModelForCausalLM"].rpartition(".")[2])
    AutoConfig.register(model_type, found.config_class, exist_ok=True)
    AutoModelForCausalLM.register(found.config_class, found, exist_ok=True)
    return found


def auto_map(model_type: str) -> dict[str, str] | None:
    """What config.json says of the file, for transformers; None for what is no network of a class of ours."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    plain = plain_type(model_type)
    names = {
        "AutoConfig": CONFIG_MAPPING_NAMES.get(plain),
        "AutoModel": MODEL_MAPPING_NAMES.get(plain),
        "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(plain),
    }
    if not is_own(model_type) or not all(isinstance(name, str) for name in names.values()):
        return None
    return {auto: f"{CODE.stem}.Ladder{name}" for auto, name in names.items()}


def write_code(model_type: str, directory: Path) -> None:
    """Puts the file with the class beside the weights, where it is one of ours."""
    if is_own(model_type):
        shutil.copyfile(CODE, directory / CODE.name)
