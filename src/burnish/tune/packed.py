"""The layers of a network that packed weights belong to."""

from __future__ import annotations

from typing import Any

from torch import nn


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
