"""Which packed checkpoints can be tuned, and the layers of a network that packed weights belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from burnish.core.checkpoint.packed_integers import formats_of
from burnish.core.errors import SettingsError


def check_whole_numbers(packing: Mapping[str, Any]) -> None:
    """Refuses a `quantization_config` of which some weights are no whole numbers.

    Raises:
        SettingsError: it names another format.
    """
    if others := sorted(formats_of(packing) - {"pack-quantized"}):
        raise SettingsError(
            f"the weights are packed as {others[0]!r}, and scales are tuned of whole numbers (pack-quantized)",
            fix="quantize with scheme: int",
        )


def layers_of(module: Any) -> dict[str, tuple[str, nn.Linear]]:
    """{name on disk of a weight: (name of the linear layer that it is the whole weight of, the layer)}."""
    from burnish.arch import known_model_types, matrices, plain_matrices

    known = module.config.model_type in known_model_types()
    names = {id(part): name for name, part in module.named_modules()}
    return {
        view.disk: (names[id(view.owner)], view.owner)
        for view in (matrices(module) if known else plain_matrices(module))
        if isinstance(view.owner, nn.Linear)
    }
