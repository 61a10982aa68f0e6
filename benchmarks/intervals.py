"""How often do intervals of a few windows hold the figure of all windows?

    python benchmarks/intervals.py --model models/smollm2 [--measure]

`--measure` measures SmolLM2-135M-Instruct, and it with weights rounded to nearest at 4 bits in groups of 64 and of 32,
on 160 windows of 256 tokens of WikiText-2 test, and writes nats, divergence and agreement of every window to
tests/reference/evaluate/windows.json. From these n windows are drawn with replacement, again and again, and each rule's
95 % interval is asked whether it holds the figure of all 160. Log-normal values stand for a divergence with more skew
than was measured. Rules: the percentile bootstrap; the same at Hesterberg's wider levels; Student's t on the scale that
the product uses (`burnish.core.statistics`).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import experiment
import numpy as np
from scipy import special

from burnish.core.statistics import interval

VALUES = Path(__file__).parent.parent / "tests" / "reference" / "evaluate" / "windows.json"
NUMBERS = (2, 3, 4, 6, 8, 12, 20, 32)
SIGMAS = (0.25, 0.5, 1.0)
EVERY_RULE = ("divergence",)
RULES = ("percentile bootstrap", "wider percentiles", "Student's t")


def measure(source: str) -> None:
    """Sums of every window, original and rounded."""
    import burnish

    original = burnish.load(source)
    evaluate = burnish.Evaluate(text="wikitext2-test", num_windows=160, context=256, max_chars=None, speed=False)
    models = {"original": original} | {
        f"rtn-group{size}": burnish.Quantize(method="rtn", bits=4, group_size=size)(original) for size in (64, 32)
    }
    found = {name: evaluate(model, reference=original) for name, model in models.items()}
    content = {
        name: {column: [round(value, 4) for value in values] for column, values in one.sequences.items()}
        for name, one in found.items()
    }
    protocol = {"protocol": found["original"].protocol, "versions": experiment.versions()}
    VALUES.write_text(json.dumps(content | protocol, separators=(",", ":")) + "\n")


def figures() -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """{figure: (value and weight of every window, scale of the product's rule)}."""
    known = {
        name: {column: np.array(values) for column, values in columns.items()}
        for name, columns in json.loads(VALUES.read_text()).items()
        if name not in ("protocol", "versions")
    }
    original, coarse, fine = (known[name] for name in ("original", "rtn-group64", "rtn-group32"))
    tokens = original["tokens"]
    return {
        "loss": (original["nats"], tokens, "linear"),
        "divergence": (coarse["kl"], tokens, "log"),
        "agreement": (coarse["agreeing"], tokens, "logit"),
        "difference of losses, paired": (coarse["nats"] - original["nats"], tokens, "linear"),
        "difference of divergences, paired": (coarse["kl"] - fine["kl"], tokens, "linear"),
        "one divergence over another, paired": (fine["kl"], coarse["kl"], "log"),
    }


def bounds(values: np.ndarray, weights: np.ndarray, rule: str, scale: Any, resamples: int) -> tuple[float, float]:
    """The 95 % interval of Σ values / Σ weights."""
    if rule == "Student's t":
        found = interval(values, weights, scale=scale)
        return found.low, found.high
    num, level = len(values), 0.025
    if rule == "wider percentiles":
        level = float(special.ndtr(math.sqrt(num / (num - 1)) * special.stdtrit(num - 1, level)))
    counts = np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), size=resamples)
    low, high = np.quantile((counts @ values) / (counts @ weights), [level, 1 - level])
    return float(low), float(high)


def coverage(
    draw: Any, truth: float, scale: str, num: int, draws: int, resamples: int, rules: tuple[str, ...]
) -> dict[str, float]:
    """{rule: share of its intervals that hold the truth}; `draw` gives values and weights of n windows."""
    generator, hits = np.random.default_rng(num), dict.fromkeys(rules, 0)
    for _ in range(draws):
        values, weights = draw(generator, num)
        for rule in rules:
            low, high = bounds(values, weights, rule, scale, resamples)
            hits[rule] += low <= truth <= high
    return {rule: count / draws for rule, count in hits.items()}


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--model", default="models/smollm2")
    command.add_argument("--measure", action="store_true", help="measure the windows anew (ten minutes)")
    arguments = command.read()
    if arguments.measure:
        measure(arguments.model)
    draws, resamples, numbers = (20, 100, NUMBERS[:2]) if arguments.smoke else (4000, 1000, NUMBERS)
    cases: dict[str, Any] = {}
    for name, (values, weights, scale) in figures().items():

        def drawn(generator: Any, num: int, values: Any = values, weights: Any = weights) -> Any:
            picks = generator.integers(len(values), size=num)
            return values[picks], weights[picks]

        cases[name] = drawn, values.sum() / weights.sum(), scale
    for sigma in SIGMAS:
        cases[f"log-normal, deviation {sigma:g}"] = (
            lambda generator, num, sigma=sigma: (generator.lognormal(sigma=sigma, size=num), np.ones(num)),
            math.exp(sigma**2 / 2),
            "log",
        )
    found = {
        name: {
            str(num): coverage(*case, num, draws, resamples, RULES if name in EVERY_RULE else RULES[-1:])
            for num in numbers
        }
        for name, case in cases.items()
    }
    content = {"settings": {"draws": draws, "resamples": resamples, "seed": "the number of windows"}, "coverage": found}
    content["spread"] = {
        name: float(np.std(values / weights) / np.mean(values / weights))
        for name, (values, weights, _) in figures().items()
    }
    slices = {"tuning": [], "reporting": [json.loads(VALUES.read_text())["protocol"]["tokens_hash"]]}
    experiment.record(arguments.out, __doc__, content | {"slices": slices}, note="nothing is timed")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs: every figure under the product's rule, and all rules on the divergence."""
    numbers = list(next(iter(results["coverage"].values())))

    def rows(names: list[str], rules: tuple[str, ...]) -> Any:
        for name in names:
            for rule in rules:
                shares = [f"{results['coverage'][name][num][rule]:.0%}" for num in numbers]
                yield [rule if len(rules) > 1 else name, *shares]

    return {
        "figures": experiment.table(["windows", *numbers], rows(list(results["coverage"]), RULES[-1:])),
        "rules": experiment.table(["windows", *numbers], rows(list(EVERY_RULE), RULES)),
    }


if __name__ == "__main__":
    main()
