"""burnish: open-weight language models made cheaper, faster and steadier, with a ledger of what every step cost.

    import burnish

    model = burnish.load("models/smollm2")
    quantized = burnish.Quantize(bits=3, method="gptq")(model, calibration=texts)
    quantized.save("out")

Public names are resolved when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from burnish._version import __version__ as __version__

if TYPE_CHECKING:
    from burnish.align.stage import Align
    from burnish.convert.stage import Upcycle
    from burnish.core.checkpoint import Model, load
    from burnish.core.errors import BurnishError
    from burnish.distill.stage import Distill
    from burnish.evaluate.stage import Evaluate
    from burnish.quantize.stage import Quantize
    from burnish.slim.stage import Slim
    from burnish.train.stage import Train

_PUBLIC = {
    "Align": "burnish.align.stage",
    "load": "burnish.core.checkpoint",
    "Model": "burnish.core.checkpoint",
    "BurnishError": "burnish.core.errors",
    "Distill": "burnish.distill.stage",
    "Evaluate": "burnish.evaluate.stage",
    "Quantize": "burnish.quantize.stage",
    "Slim": "burnish.slim.stage",
    "Train": "burnish.train.stage",
    "Upcycle": "burnish.convert.stage",
}

__all__ = ["Align", "BurnishError", "Distill", "Evaluate", "Model", "Quantize", "Slim", "Train", "Upcycle", "load"]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'burnish' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
