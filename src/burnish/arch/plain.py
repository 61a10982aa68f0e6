"""Linear layers of a model type that the table does not know: by their modules, shapes and names alone.

Enough to round weights to nearest, which looks at nothing else. What is unsure is left out: layers outside numbered
blocks (heads), whatever decides on experts or lies beside them, and everything that is not a plain linear module.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

from burnish.arch.view import MatrixView
from burnish.arch.wrappers import plain_name
from burnish.core.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"} | dict.fromkeys(
    ("gate_proj", "up_proj"), "gate_up_proj"
)
"""What vLLM joins linear layers of these names into, where all of them are there."""


def plain_matrices(module: PreTrainedModel) -> list[MatrixView]:
    """The weights of linear layers in numbered blocks, in order; they are stored under the names of their parameters.

    Raises:
        CheckpointError: transformers renames this type's parameters when it reads them, so that their names on disk are
            unknown here, or no layer is left.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    kind = module.config.model_type
    if get_checkpoint_conversion_mapping(kind):
        raise CheckpointError(
            f"model_type {kind!r} has no row in the table of architectures, and other names on disk than in memory",
            fix='one row in src/burnish/arch/table.py adds it, see the docs page "add an architecture"',
        )
    modules = {plain_name(name): part for name, part in module.named_modules()}
    beside_experts = {name.rpartition(".")[0] for name in modules if name.rpartition(".")[2] == "experts"}
    found = []
    for name, part in modules.items():
        parent, _, role = name.rpartition(".")
        block = re.search(r"\.(\d+)\.", name)
        unsure = "router" in name or parent in beside_experts or ".experts." in name
        if type(part) is not nn.Linear or block is None or unsure:
            continue
        siblings = [sibling for sibling, fused in FUSED.items() if fused == FUSED.get(role)]
        fused = bool(siblings) and all(f"{parent}.{sibling}" in modules for sibling in siblings)
        weight = f"{name}.weight"
        found.append(
            MatrixView(
                name=weight,
                disk=weight,
                parameter=weight,
                expert=None,
                rows=(0, part.out_features),
                role=role,
                part="mlp",
                layer=int(block[1]),
                fused_group=f"{parent}.{FUSED[role]}" if fused else "",
                reads=weight,
                input_group=weight,
                transposed=False,
                tied=(),
                owner=part,
            )
        )
    if not found:
        raise CheckpointError(f"model_type {kind!r} has no linear layers in numbered blocks")
    return found
