"""One policy for gradients that no update can be made of: refused, before anything is changed.

A NaN would fill a whole matrix with NaN (every entry of an orthogonalised matrix depends on every other) or end in an
error of the linear algebra, and a gradient whose squares overflow gives an update of zero. The norm of every gradient
says both, in one reading of the gradients: it is finite where all is well. Who has clipped the gradients knows their
norm already, and `step(gradient_norm=...)` saves the reading. Who wants to leave such a step out catches
`NumericalError` and goes on with the next batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from burnish.core.errors import NumericalError

LARGEST_NORM = 1e19
"""Up to this norm of all gradients no sum of squares leaves the range of float32."""


def without_norm(gradients: Sequence[Tensor]) -> list[int]:
    """The numbers of the gradients (or shards) that are not finite, or whose sum of squares is not."""
    numbers = [number for number, gradient in enumerate(gradients) if gradient.numel()]
    if not numbers:
        return []
    norms = torch._foreach_norm([gradients[number].detach() for number in numbers])
    finite = torch.stack([norm.to(norms[0].device, torch.float64) for norm in norms]).isfinite()
    return [] if finite.all() else [number for number, good in zip(numbers, finite.tolist(), strict=True) if not good]


def refuse_gradients(named: Sequence[tuple[str, Tensor]], where: str) -> NoReturn:
    """Raises NumericalError, which names the first of the parameters."""
    others = f" and {len(named) - 1} more" if len(named) > 1 else ""
    raise NumericalError(
        f"the gradient of {named[0][0]}{others} is not finite, or too large to be squared; no weight has been changed",
        where=where,
        fix="lower lr, clip the gradients, or catch this error to leave the step out",
    )
