"""How long arithmetic takes on this machine, for the estimates of `burnish plan`."""

from __future__ import annotations

FLOPS_PER_SECOND = {"cpu": 6e10, "cuda": 1e14}
"""Of one CPU core and of a data-centre GPU, in the products that dominate; good to a factor of two or three."""


def seconds_for(flops: float) -> float | None:
    """The time of so many floating-point operations; None where there are none to speak of."""
    import torch

    return flops / FLOPS_PER_SECOND["cuda" if torch.cuda.is_available() else "cpu"] or None
