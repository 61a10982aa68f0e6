"""burnish: open-weight language models made cheaper, faster and steadier, with a ledger of what every step cost.

    import burnish

    model = burnish.load("models/smollm2")
    quantized = burnish.Quantize(bits=3, method="gptq")(model, calibration=texts)
    quantized.save("out")

Public names are resolved when first used, so that importing the package costs nothing.
"""

from burnish._version import __version__ as __version__

TYPE_CHECKING = False  # that of `typing`, which takes longer to import than all of this
if TYPE_CHECKING:  # written by scripts/derive.py
    from burnish.aggregate.stage import Aggregate as Aggregate
    from burnish.align.stage import Align as Align
    from burnish.align.stage import Grpo as Grpo
    from burnish.convert.stage import LadderResidual as LadderResidual
    from burnish.convert.stage import LatentAttention as LatentAttention
    from burnish.convert.stage import SwiftKV as SwiftKV
    from burnish.convert.stage import Unpack as Unpack
    from burnish.convert.stage import Upcycle as Upcycle
    from burnish.core.checkpoint import Model as Model
    from burnish.core.checkpoint import load as load
    from burnish.core.errors import BurnishError as BurnishError
    from burnish.curriculum.stage import Curriculum as Curriculum
    from burnish.data.stage import CurateTrajectories as CurateTrajectories
    from burnish.data.stage import DrawChains as DrawChains
    from burnish.data.stage import DrawTables as DrawTables
    from burnish.diagnose.stage import Diagnose as Diagnose
    from burnish.distill.stage import Distill as Distill
    from burnish.distill.stage import Speculator as Speculator
    from burnish.evaluate.stage import Evaluate as Evaluate
    from burnish.qat.stage import Qat as Qat
    from burnish.quantize.stage import Quantize as Quantize
    from burnish.select.stage import Select as Select
    from burnish.slim.stage import Slim as Slim
    from burnish.steer.stage import Steer as Steer
    from burnish.train.stage import Train as Train
    from burnish.tune.stage import Tune as Tune

_PUBLIC = {
    "BurnishError": "burnish.core.errors",
    "Evaluate": "burnish.evaluate.stage",
    "Model": "burnish.core.checkpoint",
    "load": "burnish.core.checkpoint",
}
"""{name: module}; the stages are added from their rows when a name is first looked for."""


def _public() -> dict[str, str]:
    from burnish.methods import VERBS

    return _PUBLIC | {verb.class_name: verb.module for verb in VERBS.values()}


def __getattr__(name: str) -> object:
    if name == "__all__":
        return sorted(_public())
    if not name.startswith("_") and name in (public := _public()):
        from importlib import import_module

        return getattr(import_module(public[name]), name)
    raise AttributeError(f"module 'burnish' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_public()])
