"""Stride-wise OBS quantization of any network of linear layers and convolutions, with widths for one kind of content.

    sums = patch_sums(network, batches)                 # of the content that the network will see
    widths = bit_map(network, sums, bits=3.0)           # which stride of which layer gets how many bits
    rows = round_network(network, sums, widths)         # weights in place

A convolution is a linear layer over patches: its weight [out, in/groups, height, width] becomes (out, n) with one row
of inputs for every place of the output, and each of its groups is a matrix by itself. `maths.strides` rounds it; what a
stride costs at a width is made comparable over layers by the network's own output, Ω = 1/2 tr(H_O E H_I Eᵀ) / tr H per
example (`maths.allocation`), of which every stride has the share that it has of the layer's cost. A knapsack spends the
bits. Sums of other content give other widths, over the same weights.

A row has one scale, that of its largest weight, whatever the widths of its strides: 2^(b-1) levels reach that weight.

Source: the project's own reading of Optimal Brain Stride-wise Quantization, of which only the name and a sentence are
public (selective compression by content, mixed widths over convolution kernels, in a neural video codec).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from burnish.calibrate.maths.kronecker import covariance_sum, sketch_a_sums, symmetric
from burnish.core.errors import NumericalError, SettingsError
from burnish.quantize.maths.allocation import allocate, sensitivity
from burnish.quantize.maths.grid import integer_grid
from burnish.quantize.maths.shrinkage import shrink
from burnish.quantize.maths.strides import RoundedStrides, round_by_strides, strides_of

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
DAMPING = 0.01
"""Of H, in multiples of its mean diagonal."""
LINEAR_STRIDE = 16
"""Columns of a linear layer that are rounded together."""
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Loss = Callable[[Tensor, torch.Generator], Tensor]
Widths = dict[str, Int[Tensor, "groups strides"]]


@dataclass
class LayerSums:
    """Over all examples, for every group of a layer.

    Attributes:
        covariance: Σ x^T x of its patches; those whose output reaches nothing, such as what a causal convolution makes
            beyond the end and cuts off, count for nothing.
        input_side, output_side: of sketch A, for the sensitivity.
        num_examples: of the network.
        stride: columns that are rounded together: the kernel of one channel, or `LINEAR_STRIDE`.
    """

    covariance: Float[Tensor, "groups in in"]
    input_side: Float[Tensor, "groups in in"]
    output_side: Float[Tensor, "groups out out"]
    num_examples: int
    stride: int


def drawn_classes(outputs: Float[Tensor, "*batch classes"], generator: torch.Generator) -> Tensor:
    """Cross-entropy to classes drawn from the network itself, whose Fisher matrix is the Hessian of the divergence."""
    logits = outputs.flatten(0, -2)
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(1)
    return functional.cross_entropy(logits, drawn, reduction="sum")


def drawn_noise(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Outputs times noise: the Fisher matrix of a squared error, for networks that make signals."""
    return (outputs * torch.randn(outputs.shape, generator=generator).to(outputs)).sum()


def patch_sums(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    loss: Loss = drawn_classes,
    ignore: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, LayerSums]:
    """{name of a layer: its sums} over some content; the network stays as it is.

    Args:
        network: called with every batch.
        batches: inputs, examples first.
        loss: what is drawn from the outputs.
        ignore: names of layers to leave alone.
        seed: of what is drawn.

    Raises:
        SettingsError: a layer that is no matrix over patches, that no batch reached, or that got an example without a
            batch, or a batch without examples; or outputs that are no tensor.
        NumericalError: outputs that are not finite.
    """
    layers = layers_of(network, ignore)
    generator, sums = torch.Generator().manual_seed(seed), dict[str, LayerSums]()
    with _watched(network, layers) as calls:
        for batch in batches:
            calls.clear()
            outputs = network(batch)
            if not isinstance(outputs, Tensor):
                raise SettingsError(
                    f"gives a {type(outputs).__name__}, and no tensor of outputs",
                    where="network",
                    fix="wrap it in a module that gives its logits",
                )
            if not outputs.isfinite().all():
                raise NumericalError(
                    "gives outputs that are not finite",
                    where="network",
                    fix="look for such numbers in batches and weights",
                )
            total = loss(outputs, generator)
            gradients = torch.autograd.grad(total, [output for *_, output in calls], allow_unused=True)
            for (name, inputs, output), gradient in zip(calls, gradients, strict=True):
                given = torch.zeros_like(output) if gradient is None else gradient
                _add(sums, name, layers[name], inputs, given)
            for name in {name for name, *_ in calls}:
                sums[name].num_examples += len(batch)
    for name in layers:
        if name not in sums:
            raise SettingsError("was not reached by any batch", where=name, fix="name it in ignore")
        for part in ("covariance", "input_side", "output_side"):
            setattr(sums[name], part, symmetric(getattr(sums[name], part)))
    return sums


def layers_of(network: nn.Module, ignore: Sequence[str] = ()) -> dict[str, nn.Module]:
    """{name: linear layer or convolution}, in the network's order.

    Raises:
        SettingsError: a transposed convolution, one with gaps, or a name in `ignore` that is none.
    """
    named = dict(network.named_modules())
    for name in ignore:
        if name not in named:
            raise SettingsError(f"ignore names {name!r}, which the network does not have", where="ignore")
    found: dict[str, nn.Module] = {}
    for name, module in named.items():
        if name in ignore:
            continue
        if isinstance(module, TRANSPOSED):
            raise SettingsError(
                "is a transposed convolution, which is no matrix over patches", where=name, fix="name it in ignore"
            )
        if isinstance(module, (nn.Conv1d, nn.Conv2d)) and set(module.dilation) != {1}:
            raise SettingsError(
                f"is a convolution with dilation {max(module.dilation)}, whose strides have gaps",
                where=name,
                fix="name it in ignore",
            )
        if isinstance(module, LAYERS):
            found[name] = module
    if not found:
        raise SettingsError("the network has no linear layer or convolution to round", where="network")
    return found


def patches(layer: nn.Module, inputs: Tensor) -> Float[Tensor, "groups rows in"]:
    """What every place of the output is a product with, for each group of a layer."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, layer.in_features)
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    ends = layer._reversed_padding_repeated_twice  # of every kind of padding, "same" too
    padded = functional.pad(inputs, ends, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    kernel, stride = layer.kernel_size, layer.stride
    if isinstance(layer, nn.Conv1d):
        padded, kernel, stride = padded.unsqueeze(2), (1, *kernel), (1, *stride)
    unfolded = functional.unfold(padded, kernel, stride=stride)  # type: ignore[arg-type]
    return unfolded.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def weight_groups(layer: nn.Module) -> Float[Tensor, "groups out in"]:
    """The weight as the matrices that multiply `patches`, in float64."""
    weight: Tensor = layer.weight.detach()  # type: ignore[assignment]
    return weight.flatten(1).unflatten(0, (getattr(layer, "groups", 1), -1)).double()


def sensitivities(
    weight: Float[Tensor, "groups out in"], sums: LayerSums, widths: Sequence[int], *, stride: int
) -> Float[Tensor, "groups strides widths"]:
    """Ω of every stride of a layer at every width, as if all of its strides had that one."""
    parts = strides_of(weight.shape[2], stride)
    found = torch.zeros(len(weight), len(parts), len(widths), dtype=torch.float64)
    for place, width in enumerate(widths):
        uniform = torch.full((len(weight), len(parts)), width)
        for group, rounded in enumerate(round_groups(weight, sums, uniform, stride=stride)):
            if rounded.costs.sum() > 0:
                error = weight[group] - rounded.values
                sides = sums.output_side[group], sums.input_side[group]
                whole = sensitivity(error, *sides, sums.num_examples)
                found[group, :, place] = whole * rounded.costs / rounded.costs.sum()
    return found


def round_groups(
    weight: Float[Tensor, "groups out in"], sums: LayerSums, widths: Int[Tensor, "groups strides"], *, stride: int
) -> list[RoundedStrides]:
    """Every group of a layer with these widths of its strides."""
    found = []
    for matrix, covariance, own in zip(weight, sums.covariance, widths, strict=True):
        factor = shrink(covariance, damping=DAMPING) if covariance.any() else torch.eye(len(covariance)).to(covariance)
        grids = {
            width: integer_grid(matrix, bits=width, group_size=matrix.shape[1], signed=True)
            for width in set(own.tolist())
        }

        def nearest(values: Tensor, part: slice, own: Tensor = own, grids: Mapping[int, Any] = grids) -> Tensor:
            grid = grids[int(own[part.start // stride])]
            return grid.nearest(values, *(parameter[:, part] for parameter in grid.parameters()))

        found.append(round_by_strides(matrix, factor, nearest, stride=stride))
    return found


def bit_map(
    network: nn.Module,
    sums: Mapping[str, LayerSums],
    *,
    bits: float,
    widths: Sequence[int] = WIDTHS,
    by: Literal["layer", "stride"] = "layer",
) -> Widths:
    """Widths of all strides for the smallest sum of sensitivities at so many bits per weight, without scales.

    Args:
        network: whose weights they are for.
        sums: of the content that counts.
        bits: of the average weight, between the smallest and the largest width.
        widths: to choose among.
        by: whether a layer has one width, or every stride of it its own.

    Raises:
        SettingsError: no widths have that average.
    """
    if not min(widths) <= bits <= max(widths):
        raise SettingsError(
            f"bits is {bits:g}, but the widths are {min(widths)} to {max(widths)}",
            where="bits",
            fix="choose a number between them",
        )
    layers, costs, sizes, places = layers_of_sums(network, sums), [], [], []
    num_weights = 0
    for name, layer in layers.items():
        weight = weight_groups(layer)
        of_strides = sensitivities(weight, sums[name], widths, stride=sums[name].stride)
        columns = [part.stop - part.start for part in strides_of(weight.shape[2], sums[name].stride)]
        counts = weight.shape[1] * torch.tensor(columns).expand(len(weight), -1)
        if by == "layer":
            units = [(slice(None), slice(None))]
        else:
            units = [(group, place) for group in range(len(weight)) for place in range(len(columns))]
        for unit in units:
            own = of_strides[unit].reshape(-1, len(widths)).sum(0)
            count = int(counts[unit].sum())
            costs.append(own.tolist())
            sizes.append([count * width for width in widths])
            places.append((name, unit))
            num_weights += count
    chosen = allocate(costs, sizes, int(bits * num_weights))
    found: Widths = {}
    for name, layer in layers.items():
        groups, _, num_in = weight_groups(layer).shape
        found[name] = torch.zeros(groups, len(strides_of(num_in, sums[name].stride)), dtype=torch.long)
    for (name, unit), choice in zip(places, chosen, strict=True):
        found[name][unit] = widths[choice]
    return found


def uniform_map(network: nn.Module, sums: Mapping[str, LayerSums], bits: int) -> Widths:
    """One width for all."""
    return {
        name: torch.full(
            (len(weight_groups(layer)), len(strides_of(weight_groups(layer).shape[2], sums[name].stride))), bits
        )
        for name, layer in layers_of_sums(network, sums).items()
    }


def round_network(network: nn.Module, sums: Mapping[str, LayerSums], widths: Widths) -> list[dict[str, Any]]:
    """Rounds weights in place; a row {layer, bits, cost, sensitivity} for every layer."""
    rows = []
    for name, layer in layers_of_sums(network, sums).items():
        weight, own = weight_groups(layer), sums[name]
        results = round_groups(weight, own, widths[name], stride=own.stride)
        values = torch.stack([result.values for result in results])
        parameter: Tensor = layer.weight  # type: ignore[assignment]
        with torch.no_grad():
            parameter.copy_(values.flatten(0, 1).reshape(parameter.shape))
        errors = [
            sensitivity(error, out, into, own.num_examples)
            for error, out, into in zip(weight - values, own.output_side, own.input_side, strict=True)
        ]
        columns = torch.tensor([part.stop - part.start for part in strides_of(weight.shape[2], own.stride)])
        rows.append(
            {
                "layer": name,
                "bits": float((widths[name] * columns).sum() / (len(weight) * weight.shape[2])),
                "cost": float(sum(result.costs.sum() for result in results)),
                "sensitivity": sum(errors),
            }
        )
    return rows


def layers_of_sums(network: nn.Module, sums: Mapping[str, LayerSums]) -> dict[str, nn.Module]:
    """The layers that the sums are of.

    Raises:
        SettingsError: the network does not have one, or it has another shape.
    """
    named = dict(network.named_modules())
    for name, own in sums.items():
        if name not in named or weight_groups(named[name]).shape[::2] != own.covariance.shape[:2]:
            raise SettingsError(
                "is not in the network in the shape that the sums are of",
                where=name,
                fix="collect sums of this network",
            )
    return {name: named[name] for name in sums}


@contextmanager
def _watched(network: nn.Module, layers: Mapping[str, nn.Module]) -> Any:
    """A list that gets (name, inputs, output) of every call of a layer; the network is as before afterwards."""
    calls: list[tuple[str, Tensor, Tensor]] = []
    training = network.training
    parameters = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    with ExitStack() as stack:
        for name, layer in layers.items():

            def watch(_: nn.Module, given: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                calls.append((name, given[0].detach(), output))

            stack.callback(layer.register_forward_hook(watch).remove)
        try:
            network.eval()
            for parameter, _ in parameters:
                parameter.requires_grad_(parameter.is_floating_point())
            with torch.enable_grad():
                yield calls
        finally:
            network.train(training)
            for parameter, required in parameters:
                parameter.requires_grad_(required)


def _add(sums: dict[str, LayerSums], name: str, layer: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
    """One call of a layer."""
    if not inputs.numel():
        raise SettingsError("got a batch without examples", where=name, fix="leave empty batches out")
    if not isinstance(layer, nn.Linear) and inputs.dim() != layer.weight.dim():  # type: ignore[operator]
        raise SettingsError("got one example by itself", where=name, fix="give batches, examples first")
    rows = patches(layer, inputs).double()
    channels = gradient if isinstance(layer, nn.Linear) else gradient.movedim(1, -1)
    slopes = channels.reshape(rows.shape[1], len(rows), -1).transpose(0, 1).double()
    for group, (given, slope) in enumerate(zip(rows, slopes, strict=True)):
        if name not in sums:
            num_in, num_out = rows.shape[2], slopes.shape[2]
            empty = [rows.new_zeros(len(rows), n, n) for n in (num_in, num_in, num_out)]
            kernel = getattr(layer, "kernel_size", (LINEAR_STRIDE,))
            sums[name] = LayerSums(*empty, num_examples=0, stride=prod(kernel))
        own, reaching = sums[name], slope.any(dim=1)
        covariance_sum(given[reaching], own.covariance[group])
        sketch_a_sums(given[reaching], slope[reaching], into=(own.input_side[group], own.output_side[group]))
