"""A scheme: how the weights of some matrices lie on disk, and whether the engine rounds their inputs.

Every form of compressed-tensors that is written is a subclass in a file of its own in `formats`; what an engine has a
kernel for, and what a stock loader reads, stands there. Light, so that commands are parsed without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from burnish.arch import MatrixView
    from burnish.quantize.maths.float_grid import WeightGrid


@dataclass(frozen=True)
class Scheme:
    """What stands in a scheme's settings, and what follows from it.

    Attributes:
        bits: 2 to 8.
        group_size: inputs that share a scale; None is one scale per output row.
        symmetric: without zero points.

    Attributes:
        name: what settings call it.
        summary: a few words for the help.
        form: what compressed-tensors calls it.
        number: "int" or "float".
        fixed: settings that its kernels leave no choice of.
        rounds_activations: whether the engine rounds the inputs too, to as many bits, token by token.
        signed_scales: whether scales may be negative.
    """

    bits: int
    group_size: int | None
    symmetric: bool

    name: ClassVar[str]
    summary: ClassVar[str]
    form: ClassVar[str]
    number: ClassVar[str] = "int"
    fixed: ClassVar[Mapping[str, Any]] = {}
    rounds_activations: ClassVar[bool] = False
    signed_scales: ClassVar[bool] = False

    def group_of(self, in_features: int) -> int:
        return self.group_size or in_features

    def grid(
        self,
        weight: Float[Tensor, "out in"],
        *,
        scale_dtype: torch.dtype,
        search: bool = False,
        importance: Float[Tensor, " in"] | None = None,
    ) -> WeightGrid:
        """The values that a weight may take.

        Args:
            weight: the original weight.
            scale_dtype: what scales are stored in.
            search: whether a clipping ratio is searched for every group.
            importance: weights of the inputs in that search; None weighs all alike.
        """
        from burnish.quantize.maths.grid import integer_grid, search_scale

        settings: dict[str, Any] = {
            "bits": self.bits,
            "group_size": self.group_of(weight.shape[1]),
            "symmetric": self.symmetric,
            "signed": self.signed_scales,
            "scale_dtype": scale_dtype,
        }
        return search_scale(weight, importance, **settings) if search else integer_grid(weight, **settings)

    def pack(self, codes: Tensor, grid: Any, *, scale_dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of one weight, by the last part of their name.

        Args:
            codes: int8 or float8, (out, in).
            grid: that they belong to.
            scale_dtype: the model's dtype on disk.
        """
        raise NotImplementedError

    def shapes(self, shape: Sequence[int], scale_dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtypes and shapes of what `pack` makes of a weight (out, in)."""
        raise NotImplementedError

    def num_bytes(self, out_features: int, in_features: int, scale_bytes: int) -> int:
        """Bytes on disk of one weight."""
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        """Its part of a group in the `quantization_config` of config.json."""
        weights: dict[str, Any] = {
            "num_bits": self.bits,
            "type": self.number,
            "symmetric": self.symmetric,
            "strategy": "channel" if self.group_size is None else "group",
            "dynamic": False,
        }
        if self.group_size is not None:
            weights["group_size"] = self.group_size
        return {"weights": weights}

    def check_search(self) -> None:
        """Raises `SettingsError` where a search of clipping ratios makes no sense."""

    def check_loadable(self, view: MatrixView) -> None:
        """Raises `SettingsError` where no stock loader would read this matrix."""

    def check_kernel(self, view: MatrixView, engine: str) -> None:
        """Raises `EngineError` where an engine (vLLM 0.32) has no kernel for this matrix."""

    def notes(self) -> tuple[str, ...]:
        """Sentences for the plan."""
        return ()


@dataclass(frozen=True)
class EightBits(Scheme):
    """One scale per row, and activations of eight bits too: P.weight (m, n) and P.weight_scale (m, 1)."""

    fixed: ClassVar[Mapping[str, Any]] = {"bits": 8, "group_size": None, "symmetric": True}
    rounds_activations: ClassVar[bool] = True

    def pack(self, codes: Tensor, grid: Any, *, scale_dtype: torch.dtype) -> dict[str, Tensor]:
        return {"weight": codes.contiguous(), "weight_scale": grid.scale.to(scale_dtype).contiguous()}

    def code_dtype(self) -> torch.dtype:
        raise NotImplementedError

    def shapes(self, shape: Sequence[int], scale_dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"weight_scale": (scale_dtype, (shape[0], 1)), "weight": (self.code_dtype(), tuple(shape))}

    def num_bytes(self, out_features: int, in_features: int, scale_bytes: int) -> int:
        return out_features * (in_features + scale_bytes)

    def arguments(self) -> dict[str, Any]:
        number = {"num_bits": self.bits, "type": self.number}
        return super().arguments() | {
            "input_activations": number | {"symmetric": True, "strategy": "token", "dynamic": True}
        }

    def notes(self) -> tuple[str, ...]:
        return ("the engine rounds activations too, at run time; dense measurements show the weights' part only",)
