"""`rope_scaling`: positions of a model with RoPE made to reach further, before it is trained on longer texts.

    linear=4                    positions are divided by 4
    yarn=4                      slow frequencies alone are divided by 4, and attention is sharpened
    llama3=4                    the same with the borders of Llama 3.1
    theta=1e6,positions=32768   another base; how far it reaches is for the user to say

The first three reach as many times further. All are fixed frequencies that a configuration names, so that stock
libraries compute the same, and two views of a document (`burnish.train.views`) have the same ones. Formulas are those
of transformers (`modeling_rope_utils`). Sources: YaRN, 2023, arXiv:2309.00071; position interpolation, 2023,
arXiv:2306.15595; enlarged bases, 2023, arXiv:2309.16039. Parsing imports no torch.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from pydantic import Field, model_validator

from burnish.core.errors import SettingsError
from burnish.core.settings import Settings

WHERE = "rope_scaling"
FACTORS = ("linear", "yarn", "llama3")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Of Llama 3.1's own configuration."""


class RopeScaling(Settings):
    """One way to reach further."""

    linear: float | None = Field(default=None, gt=1, description="how many times further, by divided positions")
    yarn: float | None = Field(default=None, gt=1, description="the same by YaRN")
    llama3: float | None = Field(default=None, gt=1, description="the same as Llama 3.1 does")
    theta: float | None = Field(default=None, gt=1, description="another base")
    positions: int | None = Field(default=None, ge=2, description="theta: how many positions there are then")

    @classmethod
    def of(cls, text: str) -> RopeScaling:
        """From `name=value,name=value`.

        Raises:
            SettingsError: no such setting, or a value that it cannot have.
        """
        found: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not name or not value:
                fix = "write linear=4, yarn=4, llama3=4 or theta=1e6,positions=32768"
                raise SettingsError(f"{part!r} is no setting", where=WHERE, fix=fix)
            if name in found:
                raise SettingsError(f"{name} stands there twice", where=WHERE, fix="leave one out")
            found[name] = value
        return cls.parse(found, where=WHERE)

    @model_validator(mode="after")
    def _is_one(self) -> RopeScaling:
        given = [name for name in (*FACTORS, "theta") if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"{given[0]} and {given[1]} are two ways to scale" if given else "nothing scales"
            raise ValueError(f"{said}: give one of linear, yarn, llama3 and theta")
        if (self.theta is None) != (self.positions is None):
            raise ValueError("theta and positions belong together: a base alone does not say how far positions reach")
        return self

    def scaled(self, config: Any) -> Any:
        """A copy of a configuration that reaches further.

        Raises:
            SettingsError: a model without RoPE, with one for each kind of layer, or one that is scaled already.
        """
        found = copy.deepcopy(config)
        text = found.get_text_config()
        rope, longest = getattr(text, "rope_parameters", None), getattr(text, "max_position_embeddings", None)
        why = ""
        if not rope or longest is None:
            why = f"{text.model_type} has no rotary positions (RoPE)"
        elif any(isinstance(part, dict) for part in rope.values()):
            why = f"{text.model_type} has frequencies of its own for each kind of layer"
        elif rope.get("rope_type", "default") != "default":
            why = f"the model's RoPE is scaled already ({rope['rope_type']})"
        if why:
            raise SettingsError(why, where=WHERE, fix="leave rope_scaling out")
        assert rope and longest is not None, "refused above"
        if self.theta is not None and self.positions is not None:
            if self.positions < longest:
                raise SettingsError(
                    f"{self.positions:,} positions are fewer than the model's {longest:,}",
                    where=WHERE,
                    fix=f"use positions={longest} or more",
                )
            text.rope_parameters = rope | {"rope_theta": self.theta}
            text.max_position_embeddings = self.positions
            return found
        kind, factor = next((name, value) for name in FACTORS if (value := getattr(self, name)) is not None)
        own = {} if kind == "linear" else {"original_max_position_embeddings": longest}
        text.rope_parameters = rope | {"rope_type": kind, "factor": factor} | own | (LLAMA3 if kind == "llama3" else {})
        text.max_position_embeddings = math.floor(factor * longest)
        return found


def rescale(module: Any, config: Any) -> None:
    """Gives a loaded model the frequencies of another configuration, as loading it with that one would.

    Args:
        module: of transformers.
        config: by `RopeScaling.scaled`.

    Raises:
        SettingsError: its frequencies are not where transformers keeps them.
    """
    own, text = module.config.get_text_config(), config.get_text_config()
    own.rope_parameters, own.max_position_embeddings = text.rope_parameters, text.max_position_embeddings
    places = [(name, part) for name, part in module.named_modules() if hasattr(part, "original_inv_freq")]
    if not places:
        raise SettingsError(
            f"{type(module).__name__} does not keep its frequencies in a part of its own",
            where=WHERE,
            fix="leave rope_scaling out",
        )
    for name, part in places:
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, type(part)(config=own).to(part.inv_freq.device))
