"""How a checkpoint's texts are generated: carried as the file that it was, valid or not.

transformers reads a `generation_config.json` with a `temperature` and no `do_sample`, of which hubs hold many, and
refuses to write it. What a stage has not changed is therefore copied, not written again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.core.checkpoint.reading import load_config, quiet_transformers
from burnish.core.outside import answered_for, read_object

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

FILE = "generation_config.json"


def read_generation_config(directory: Path) -> GenerationConfig | None:
    """The settings in a checkpoint's file, None where it has none.

    Raises:
        CheckpointError: the file is not one of such settings.
    """
    from transformers import GenerationConfig

    if not (directory / FILE).is_file():
        return None
    content = read_object(directory / FILE)
    with quiet_transformers(), answered_for("is no generation configuration", where=str(directory / FILE)):
        return GenerationConfig.from_dict(content)


def write_generation_config(
    module: PreTrainedModel, origin: Path | None, directory: Path, *, start: Path | None = None
) -> None:
    """The module's settings, or the file of the checkpoint it was made of where those are the same.

    Args:
        module: the network.
        origin: the checkpoint that it continues; None where it is of another architecture.
        directory: to write to.
        start: the checkpoint it was made of, of whatever architecture.

    Raises:
        CheckpointError: settings that were changed contradict each other.
    """
    if not module.can_generate():
        return
    now = module.generation_config
    if origin is None and start is not None and (start / FILE).is_file():
        origin = start
    before = read_generation_config(origin) if origin is not None else None
    if origin is not None and before is not None and _said(before) == _said(now):
        shutil.copyfile(origin / FILE, directory / FILE)
    elif origin is None or before is not None or not _follows_from(module, origin):
        fix = "change module.generation_config, or the generation_config.json of the start"
        with answered_for("its generation configuration cannot be written", where=str(directory), fix=fix):
            now.save_pretrained(directory)


def _follows_from(module: PreTrainedModel, origin: Path) -> bool:
    """Whether the settings are what transformers makes of a checkpoint's config.json by itself."""
    from transformers import GenerationConfig

    return _said(GenerationConfig.from_model_config(load_config(origin))) == _said(module.generation_config)


def _said(settings: GenerationConfig) -> dict[str, object]:
    content = settings.to_dict()
    return {key: value for key, value in content.items() if key != "transformers_version" and not key.startswith("_")}
