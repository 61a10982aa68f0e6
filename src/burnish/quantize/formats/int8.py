"""Plain int8, `int-quantized`: one scale per row, activations rounded to int8 by the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from burnish.core.errors import SettingsError
from burnish.quantize.scheme import EightBits

if TYPE_CHECKING:
    import torch

    from burnish.arch import MatrixView


@dataclass(frozen=True)
class PlainInt8(EightBits):
    name: ClassVar[str] = "w8a8-int8"
    summary: ClassVar[str] = "8-bit weights with a scale per row, and the engine rounds activations to int8, by token"
    form: ClassVar[str] = "int-quantized"

    def code_dtype(self) -> torch.dtype:
        import torch

        return torch.int8

    def check_loadable(self, view: MatrixView) -> None:
        if view.expert is not None:
            raise SettingsError(
                "transformers reads experts packed or as float8, not as plain int8",
                where=view.name,
                fix="use scheme: fp8-dynamic, or int",
            )


SCHEME = PlainInt8
