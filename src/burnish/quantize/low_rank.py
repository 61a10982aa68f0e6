"""A part of low rank beside rounded weights: factors in the checkpoint's dtype that are written as a LoRA adapter.

    W = W_res + B A        W_res is what is rounded; A (rank, in), B (out, rank)
    CorDA    A, B = sqrt(S) V^T C^-1, U sqrt(S)    of U S V^T = SVD(W C), C = mean of x^T x over the calibration text
    PiSSA    the same with C = I
    LoftQ    B A = SVD of rank r of W less its rounded self, after rounding

CorDA's first r components ("ipm") take out of a weight what its inputs use most, the last r ("kpm") what they use
least. Decompositions before rounding are peft's. What it does that its pages do not say, and what follows here:

* its hook squeezes the batch away: windows go through the network one at a time;
* every window is divided by its largest entry, not by its largest magnitude: a window counts by what its entries are
  relative to that one, whatever its sign;
* C is damped, C + d mean(diag C) I with d = 0.01, doubled until the inverse is within 0.05 of one;
* factors lie in float32 and the remainder is W less these: they are rounded to what is written first, and taken out of
  W after that, so that W_res + B A is W with the factors that engines read.

CorDA (2024, arXiv:2406.05223); PiSSA (2024, arXiv:2404.02948); LoftQ (2023, arXiv:2310.08659), one iteration, as peft's
default has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from burnish.arch import MatrixView
from burnish.calibrate import Calibration
from burnish.core.checkpoint.adapter import Adapter, without_adapter
from burnish.core.errors import MissingExtraError, SettingsError
from burnish.quantize.maths.low_rank import nearest_product
from burnish.quantize.settings import BY_TEXT

if TYPE_CHECKING:
    from burnish.quantize.stage import Quantize

BEFORE = (*BY_TEXT, "pissa")
"""Starts that are taken out of a weight before it is rounded."""


@dataclass
class LowRank:
    """The factors of a network that is being rounded.

    Attributes:
        layers: {name of a linear layer: the layer}.
        rank: of the factors.
        dtype: of the factors, as they are written.
        originals: weights before rounding, where factors are fitted after it.
    """

    layers: Mapping[str, nn.Linear]
    rank: int
    dtype: torch.dtype
    originals: Mapping[str, Tensor]

    def taken_from(self, module: nn.Module) -> Adapter:
        """The adapter of the rounded network, which is left with its own layers alone."""
        if self.originals:
            weights = {name: (weight, self.layers[name].weight) for name, weight in self.originals.items()}
            return Adapter.of(
                {name: remainder(before, after, self.rank, self.dtype) for name, (before, after) in weights.items()}
            )
        factors = {name: _factors(module.get_submodule(name)) for name in self.layers}
        without_adapter(module)
        return Adapter.of({name: (a.to(self.dtype), b.to(self.dtype)) for name, (a, b) in factors.items()})


def low_rank(
    settings: Quantize,
    module: nn.Module,
    views: Sequence[MatrixView],
    text: Calibration | None,
    dtype: torch.dtype,
) -> LowRank | None:
    """Begins the part of low rank, where settings ask for one. With a start of `BEFORE` the network gets an adapter: it
    computes what it did, while its own layers hold the remainder.

    Raises:
        SettingsError: a matrix is no linear layer, or has a rank below that of the factors.
        MissingExtraError: peft is not installed.
    """
    if not settings.low_rank:
        return None
    layers = layers_of(module, views, settings.low_rank)
    if settings.low_rank_init not in BEFORE:
        originals = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        return LowRank(layers, settings.low_rank, dtype, originals)

    def run_model() -> None:
        assert text is not None, "corda looks at the calibration text"
        with torch.no_grad():
            for window in text.tokens:
                module(input_ids=window[None].to(next(module.parameters()).device))

    take_out(module, layers, settings.low_rank, settings.low_rank_init, run_model, dtype)
    return LowRank(layers, settings.low_rank, dtype, {})


def take_out(
    module: Any,
    layers: Mapping[str, nn.Linear],
    rank: int,
    start: str,
    run_model: Callable[[], None],
    dtype: torch.dtype,
) -> None:
    """Puts an adapter on a network in place, and what it adds out of the layers below.

    Args:
        module: the network, in float32.
        layers: those that get factors, by name.
        rank: of the factors.
        start: one of `BEFORE`.
        run_model: runs the network on text, one window at a time.
        dtype: what factors are rounded to.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora.config import CordaConfig
        from peft.tuners.lora.corda import preprocess_corda
    except ImportError:
        raise MissingExtraError("peft", "train", "factors beside rounded weights") from None
    facts: dict[str, Any] = {"r": rank, "lora_alpha": rank, "target_modules": list(layers)}
    if start in BY_TEXT:
        method = "kpm" if start == "corda-kpm" else "ipm"
        config = LoraConfig(**facts, init_lora_weights="corda", corda_config=CordaConfig(corda_method=method))
        preprocess_corda(module, config, run_model=run_model)
    else:
        config = LoraConfig(**facts, init_lora_weights="pissa")
    weights = {name: (layer.weight.data, layer.weight.data.clone()) for name, layer in layers.items()}
    with torch.random.fork_rng(devices=[]):  # peft draws a start that it then overwrites
        inject_adapter_in_model(config, module)
    for name, (own, original) in weights.items():
        factors = _factors(module.get_submodule(name))
        a, b = (factor.to(dtype).to(original.dtype) for factor in factors)
        for factor, rounded in zip(factors, (a, b), strict=True):
            factor.copy_(rounded)
        layers[name].weight.data = own.copy_(original - b @ a)


def remainder(before: Tensor, after: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A and B of the best B A of that rank for what rounding has lost."""
    down, up = nearest_product((before - after).detach(), rank)
    return down.to(dtype), up.to(dtype)


def layers_of(module: nn.Module, views: Sequence[MatrixView], rank: int) -> dict[str, nn.Linear]:
    """{name: linear layer} of the matrices that get factors.

    Raises:
        SettingsError: naming one that is none, or whose rank is too low.
    """
    names, found = {id(part): name for name, part in module.named_modules()}, {}
    for view in views:
        owner = view.owner
        if not isinstance(owner, nn.Linear) or owner.weight.shape != view.shape:
            raise SettingsError(
                f"{view.name} is no linear layer of its own, and factors lie beside these alone",
                where="low_rank",
                fix="leave it dense with ignore, or low_rank out",
            )
        if rank > min(view.shape):
            raise SettingsError(
                f"low_rank is {rank:,}, but {view.name} has a rank of {min(view.shape):,} at most",
                where="low_rank",
                fix="use 8 to 64",
            )
        found[names[id(owner)]] = owner
    return found


def factors_of(settings: Quantize, module: nn.Module, views: Sequence[MatrixView], each: int) -> tuple[int, list[str]]:
    """Bytes of the factors of all matrices, `each` a number, and what a plan says of them; refuses as `layers_of`."""
    if not settings.low_rank:
        return 0, []
    layers_of(module, views, settings.low_rank)
    num_bytes = each * settings.low_rank * sum(sum(view.shape) for view in views)
    width = 8 * num_bytes / sum(view.shape[0] * view.shape[1] for view in views)
    return num_bytes, [f"factors of rank {settings.low_rank} take {width:.2f} bits more per weight"]


def check(settings: Quantize) -> None:
    """Raises `SettingsError` for settings that do not go with factors."""
    if not settings.low_rank:
        if settings.low_rank_init != type(settings).model_fields["low_rank_init"].default:
            what = f"low_rank_init is {settings.low_rank_init}, but there are no factors"
            raise SettingsError(what, where="low_rank_init", fix="give a low_rank")
        return
    reasons = {
        "target": (settings.target is not None, "the bytes of factors are not among those that a target counts"),
        "stream": (bool(settings.stream), "factors need the whole model at once"),
        "method": (settings.method == "autoround", "its own program rounds the model that it is given"),
        "scheme": (settings.scheme != "int", "an adapter is trained and read beside whole numbers alone"),
    }
    if given := next(((name, why) for name, (against, why) in reasons.items() if against), None):
        name, why = given
        raise SettingsError(
            f"low_rank does not go with {name} {getattr(settings, name)}: {why}",
            where="low_rank",
            fix="use one of them",
        )


def _factors(layer: Any) -> tuple[Tensor, Tensor]:
    """A and B of a layer with an adapter, live."""
    return layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
