"""Float64 that is float64 throughout, and what may differ where it is not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class AllFloat64(TorchFunctionMode):
    """Gives float64 to whoever asks for float32: stock models do for norms, softmax, routers and rotations.

    Without it a model in float64 is good to 1e-7 only, and how its float32 parts are rounded depends on the processor:
    vector instructions and the scalar code for what is left over differ in the last bit.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            return args[0].double()
        given = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return func(*map(_widened, args), **given)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def rounding(num_terms: int, dtype: torch.dtype = torch.float32) -> float:
    """The largest relative error of a sum of so many products, whatever their order: one rounding a term."""
    return num_terms * torch.finfo(dtype).eps
