"""Eight-bit floats (E4M3), `float-quantized`: one scale per row, activations rounded to float8 by the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from burnish.core.errors import SettingsError
from burnish.quantize.scheme import EightBits

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from burnish.quantize.maths.float_grid import WeightGrid


@dataclass(frozen=True)
class DynamicFloat8(EightBits):
    name: ClassVar[str] = "fp8-dynamic"
    summary: ClassVar[str] = "8-bit floats with a scale per row, and the engine rounds activations to float8, by token"
    form: ClassVar[str] = "float-quantized"
    number: ClassVar[str] = "float"

    def grid(
        self,
        weight: Float[Tensor, "out in"],
        *,
        scale_dtype: torch.dtype,
        search: bool = False,
        importance: Float[Tensor, " in"] | None = None,
    ) -> WeightGrid:
        from burnish.quantize.maths.float_grid import float_grid

        return float_grid(weight, scale_dtype=scale_dtype)

    def code_dtype(self) -> torch.dtype:
        import torch

        return torch.float8_e4m3fn

    def check_search(self) -> None:
        raise SettingsError(
            "scale_search is for integer grids; float8 steps are finest near zero, so clipping gains nothing",
            fix="leave scale_search out",
        )


SCHEME = DynamicFloat8
