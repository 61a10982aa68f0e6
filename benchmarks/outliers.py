"""What stands out in a model's activations, and does a bias of channels make their rounding to 8 bits cheaper?

    python benchmarks/outliers.py --data DIR --work runs/outliers      # again, until all is done

SmolLM2 in float32. Statistics of what every matrix of a decoder layer reads, and biases of its channels, are of 4,096
tokens of WikiText-2 valid; a learned bias is of 128 of them (of one window), 20 steps of Adam from nothing, the mean or
the middle of the range, whichever has the smallest error on these: of all products together, or of each token's.
Reported is the divergence from the model as it is on 6 windows of 256 tokens each of WikiText-2 test and of presidents'
speeches (us_speeches.jsonl.gz in DIR), which nothing was fitted on.

activations: every token that a matrix reads is rounded to 8 bits on a grid of its own, weights stay as they are. Beside
    no bias stand the mean, the middle of the range and the learned one; and no bias, with the three inputs dense whose
    largest number is the most times its rms.
weights: rounded to nearest at 4 bits in groups of 64, activations stay as they are. A bias whose counterpart is made of
    the rounded weights changes nothing, which is shown; made of the original weights it corrects the mean of the error
    (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, arXiv:1906.04721).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from torch import Tensor

import burnish
from burnish.arch import MatrixView, by_input, capture, matrices
from burnish.calibrate.walk import WholeModel
from burnish.calibrate.windows import Calibration
from burnish.core.checkpoint import load
from burnish.core.progress import Progress
from burnish.core.stage import seeded_generator
from burnish.data import calibration
from burnish.evaluate.maths.divergence import kl_divergence
from burnish.quantize.maths.channel_bias import learned_bias, product_error, rounded_by_token
from burnish.quantize.outliers import rows, seen
from burnish.quantize.plan import select

LENGTH, WINDOWS, TOKENS, LEARNED_ON = (32, 2, 256, 32) if experiment.SMOKE else (256, 6, 4096, 128)
STEPS = 2 if experiment.SMOKE else 20
TEXTS = {"wikitext": "WikiText-2 test", "speeches": "speeches"}
NONE, MEAN, MIDDLE, LEARNED, RELATIVE, DENSE = ACTIVATIONS = (
    "no bias",
    "the mean",
    "the middle of the range",
    "learned on the whole error",
    "learned on the error of each token",
    "no bias, the three worst inputs dense",
)
ROUNDED, BEHIND, BEFORE = WEIGHTS = (
    "no bias",
    "the mean, folded behind the rounded weights",
    "the mean, folded before the weights are rounded",
)
WORST = 3
SHOWN = 8
"""Rows of the table of inputs."""


class Bench(experiment.Kept):
    """What is measured, by name: "TEXT, WINDOW", and "inputs"."""

    def __init__(self, options: Any) -> None:
        super().__init__(options.work)
        self.model = load(options.model, dtype=torch.float32)
        self.data, self.work = options.data, options.work

    def names(self) -> list[str]:
        return ["inputs", *(f"{text}, {number}" for number in range(WINDOWS) for text in TEXTS)]

    def measure(self, name: str) -> dict[str, Any]:
        if name == "inputs":
            return {"rows": self.rows, "learned": self.kept["report"]}
        text, number = name.split(", ")
        return self.of_window(self.reporting[text][int(number)][None])

    @torch.no_grad()
    def of_window(self, tokens: Tensor) -> dict[str, Any]:
        original = self.module(tokens).logits
        dense = {row["input"] for row in self.inputs[:WORST]}
        zero = {name: torch.zeros_like(bias) for name, bias in self.biases[MEAN].items()}
        biases = {NONE: zero, DENSE: {name: bias for name, bias in zero.items() if name not in dense}} | self.biases
        found = {}
        for arm in ACTIVATIONS:
            with self.read_as(self.views, biases[arm], lambda x, bias: rounded_by_token(x - bias) + bias):
                found[f"activations, {arm}"] = divergence(original, self.module(tokens).logits)
        rounded = self.rounded(tokens).logits
        found[f"weights, {ROUNDED}"] = divergence(original, rounded)
        logits = {}
        for arm, of in ((BEHIND, self.rounded_views), (BEFORE, self.by_name)):
            with self.folded({name: view.tensor for name, view in of.items()}):
                logits[arm] = self.rounded(tokens).logits
            found[f"weights, {arm}"] = divergence(original, logits[arm])
        return {
            "kl": found,
            "moved": float((logits[BEHIND] - rounded).abs().max()),
            "logits": float(rounded.abs().max()),
        }

    @contextmanager
    def folded(self, counterparts: dict[str, Tensor]) -> Iterator[None]:
        """The mean is taken off what the rounded weights read, and what these weights make of it added behind."""
        with ExitStack() as stack:
            views = list(self.rounded_views.values())
            stack.enter_context(self.read_as(views, self.biases[MEAN], lambda x, bias: x - bias))
            for view in views:
                constant = counterparts[view.name] @ self.biases[MEAN][view.input_group]
                hook = view.owner.register_forward_hook(lambda _, __, output, constant=constant: output + constant)
                stack.callback(hook.remove)
            yield

    @contextmanager
    def read_as(
        self, views: list[MatrixView], biases: dict[str, Tensor], change: Callable[[Tensor, Tensor], Tensor]
    ) -> Iterator[None]:
        """What the matrices read is changed by the bias of its channels, where it has one."""
        with ExitStack() as stack:
            for view in views:
                bias = biases.get(view.input_group)
                if bias is None:
                    continue

                def hook(_: Any, args: tuple[Tensor, ...], bias: Tensor = bias) -> tuple[Tensor, ...]:
                    return (change(args[0].flatten(0, -2), bias).view_as(args[0]), *args[1:])

                stack.callback(view.owner.register_forward_pre_hook(hook).remove)
            yield

    @cached_property
    def views(self) -> list[MatrixView]:
        return select(matrices(self.module), ())

    @cached_property
    def by_name(self) -> dict[str, MatrixView]:
        return {view.name: view for view in self.views}

    @cached_property
    def rounded_views(self) -> dict[str, MatrixView]:
        return {view.name: view for view in matrices(self.rounded) if view.name in self.by_name}

    @cached_property
    def rounded(self) -> Any:
        settings = burnish.Quantize(method="rtn", bits=4, group_size=64 if not experiment.SMOKE else 32, refit=0)
        return settings(self.model).module.float().eval()

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return self.kept["rows"]

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """One row for each input."""
        groups = {view.name: view.input_group for view in self.views}
        first: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            first.setdefault(groups[row["name"]], row | {"input": groups[row["name"]]})
        return list(first.values())

    @cached_property
    def biases(self) -> dict[str, dict[str, Tensor]]:
        return self.kept["biases"]

    @cached_property
    def kept(self) -> dict[str, Any]:
        """Statistics and biases, which are made once."""
        place = self.work / "biases.pt"
        if not place.is_file():
            torch.save(self.fitted(), place)
        return torch.load(place, weights_only=True)

    def fitted(self) -> dict[str, Any]:
        text = Calibration(self.drawn(), num_folds=1)
        found = seen(WholeModel(self.module, self.views, precision="highest"), text, Progress())
        groups = by_input(self.views)
        biases: dict[str, dict[str, Tensor]] = {MEAN: {}, MIDDLE: {}, LEARNED: {}, RELATIVE: {}}
        objective = []
        for name, x in self.inputs_on(text.tokens[:1]).items():
            sums = found.sums[name]
            biases[MEAN][name], biases[MIDDLE][name] = sums.mean.float(), sums.mid_range.float()
            gram = torch.stack([view.tensor.T @ view.tensor for view in groups[name]]).sum(0)
            starts = (torch.zeros(x.shape[1]), biases[MEAN][name], biases[MIDDLE][name])
            for arm, relative in ((LEARNED, False), (RELATIVE, True)):
                error = partial(product_error, x, gram, relative=relative)
                biases[arm][name] = learned_bias(x, gram, min(starts, key=error), relative=relative, steps=STEPS)
                none, learned = (float(error(bias)) for bias in (starts[0], biases[arm][name]))
                objective.append({"name": name, "arm": arm, "none": none, "learned": learned})
        return {"rows": rows(self.views, found, 64), "biases": biases, "report": objective}

    def inputs_on(self, tokens: Tensor) -> dict[str, Tensor]:
        """Some rows of every input, spread over a window."""
        first = [group[0] for group in by_input(self.views).values()]
        found: dict[str, Tensor] = {}
        with torch.no_grad(), capture(self.module, first, gradients=False) as captured:
            captured.callback = lambda view, inputs, *_: found.update(
                {view.input_group: inputs[:: LENGTH // LEARNED_ON].clone()}
            )
            self.module(tokens)
        return found

    def drawn(self) -> Tensor:
        generator = seeded_generator(0)
        return calibration(
            self.model.tokenizer, "wikitext2-valid", length=LENGTH, max_tokens=TOKENS, generator=generator
        )

    @cached_property
    def reporting(self) -> dict[str, Tensor]:
        texts = {text: experiment.texts_of(text, self.data) for text in TEXTS}
        return {
            text: experiment.spread_windows(self.model.tokenizer, some, LENGTH, WINDOWS) for text, some in texts.items()
        }

    @cached_property
    def module(self) -> Any:
        return self.model.module.eval()


def divergence(original: Tensor, other: Tensor) -> float:
    """Mean over tokens, in nats."""
    p, q = (logits.flatten(0, 1).log_softmax(1) for logits in (original, other))
    return float(kl_divergence(p, q).mean())


# -- what is quoted ----------------------------------------------------------------------------------------------------


def content(bench: Bench) -> dict[str, Any]:
    """Of the results file."""
    each = {text: [bench.read(f"{text}, {number}") for number in range(WINDOWS)] for text in TEXTS}
    arms = [*(f"activations, {arm}" for arm in ACTIVATIONS), *(f"weights, {arm}" for arm in WEIGHTS)]
    reporting = [experiment.digest(bench.reporting[text].numpy()) for text in TEXTS]
    learned = bench.read("inputs")["learned"]
    return {
        "settings": {"length": LENGTH, "windows": WINDOWS, "tokens": TOKENS, "learned on": LEARNED_ON, "steps": STEPS},
        "slices": {"tuning": [experiment.digest(bench.drawn().numpy())], "reporting": reporting},
        "inputs": bench.inputs[:SHOWN],
        "weights": by_role(bench.rows),
        "kl": {arm: {text: [window["kl"][arm] for window in some] for text, some in each.items()} for arm in arms},
        "moved": max(window["moved"] / window["logits"] for some in each.values() for window in some),
        "objective": {
            arm: float(np.median([one["learned"] / one["none"] for one in learned if one["arm"] == arm]))
            for arm in (LEARNED, RELATIVE)
        },
    }


def by_role(found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians over layers of what is told of weights and inputs."""
    names = (
        "max_over_rms",
        "kurtosis",
        "error_8_bits",
        "group_range",
        "weight_kurtosis",
        "rotated_kurtosis",
        "incoherence",
    )
    roles = dict.fromkeys(row["role"] for row in found)
    return {
        role: {name: float(np.median([row[name] for row in found if row["role"] == role])) for name in names}
        for role in roles
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    return {"inputs": input_table(results), "roles": role_table(results), "biases": bias_table(results)}


def input_table(results: dict[str, Any]) -> str:
    rows = [
        [
            f"`{row['name'].removesuffix('.weight')}`",
            f"{row['max_over_rms']:,.0f}",
            f"{row['max_over_median']:,.0f}",
            f"{row['kurtosis']:,.0f}",
            row["channel"],
            f"{row['tokens']:.2%}",
            f"{row['begin']:.0%}",
            f"{row['error_8_bits']:.3f}",
        ]
        for row in results["inputs"]
    ]
    header = (
        "read by | max over rms: | max over median channel: | kurtosis: | channel: | tokens that reach half: | "
        "of these, first of a text: | error at 8 bits:"
    )
    return experiment.table(header, rows)


def role_table(results: dict[str, Any]) -> str:
    names = ("max_over_rms", "kurtosis", "error_8_bits", "group_range", "weight_kurtosis", "rotated_kurtosis")
    forms = (",.0f", ",.0f", ".3f", ".2f", ".2f", ".2f")
    rows = [
        [role, *(f"{told[name]:{form}}" for name, form in zip(names, forms, strict=True))]
        for role, told in results["weights"].items()
    ]
    header = (
        "matrix, median over layers | input, max over rms: | kurtosis: | error at 8 bits: | weights, max over rms of a "
        "group: | kurtosis: | kurtosis rotated:"
    )
    return experiment.table(header, rows)


def bias_table(results: dict[str, Any]) -> str:
    rows = []
    for part, arms in (("activations", ACTIVATIONS), ("weights", WEIGHTS)):
        plain = results["kl"][f"{part}, {arms[0]}"]
        for arm in arms:
            own = results["kl"][f"{part}, {arm}"]
            cells = []
            for text in TEXTS:
                ratio = "" if arm == arms[0] else experiment.cell(experiment.ratio(own[text], plain[text]), ".2f")
                cells += [f"{float(np.mean(own[text])):.4f}", ratio]
            rows.append([f"{part}, {arm}", *cells])
    texts = " | ".join(f"KL, {name}: | of no bias (95 %):" for name in TEXTS.values())
    return experiment.table(f"rounded, bias | {texts}", rows)


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps("where statistics, biases and what has been measured are kept")
    command.add_argument("--model", type=Path, default=Path("models/smollm2"))
    command.add_argument("--data", type=Path, help="where us_speeches.jsonl.gz is")
    options = command.read()
    bench = Bench(options)
    experiment.answer(bench, options, __doc__, lambda: content(bench), tables, note="nothing is timed")


if __name__ == "__main__":
    main()
