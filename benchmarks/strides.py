"""At equal bits, is a convolutional network closer to itself with mixed widths, and does its content's own map help?

    python benchmarks/strides.py

Small networks (two convolutions, a depthwise one, a pointwise one, a linear head; 5,424 weights) learn handwritten
digits (scikit-learn's, 8 x 8 pixels) and are rounded at 3.0 and 2.5 bits per weight: one width for all (3.0 only), one
for each layer, one for each stride (the kernel of one channel), and to nearest with one width. Sums come from half of
the training images, and the divergence from the network as it was and its accuracy from 797 images that nothing else
has seen.
Five networks, five seeds. Content: maps for the digits 0 to 4 and for 5 to 9, at 3.0 bits by layer and by stride, each
with the sums of its own images, measured on test images of its own digits beside the map for all digits and the other
one.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import experiment
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from burnish.quantize import strides as wise

SEEDS, STEPS = (1, 5) if experiment.SMOKE else (5, 400)
TRAINED, CHANNELS = 1000, 32
HALVES = {"digits 0 to 4": range(5), "digits 5 to 9": range(5, 10)}


def main() -> None:
    arguments = experiment.Command(__file__, __doc__).read()
    torch.set_num_threads(1)
    pixels, target = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(target)
    rows, content = [], []
    for seed in range(SEEDS):
        shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        seen, unseen = shuffled[:TRAINED], shuffled[TRAINED:]
        network = trained(images[seen], labels[seen], seed)
        used, test = seen[: TRAINED // 2], (images[unseen], labels[unseen])
        sums = wise.patch_sums(network, images[used].split(100), seed=seed)
        original = {"seed": seed, "bits": 32.0, "how": "original"} | measured(network, network, *test)
        rows += [original]
        for bits in (3.0, 2.5):
            for how, widths, own in ways(network, sums, bits):
                found = measured(rounded(network, own, widths), network, *test)
                rows.append({"seed": seed, "bits": bits, "how": how} | found)
        content += of_content(network, sums, images, labels, used, unseen, seed)
        print(f"seed {seed}: {original['accuracy']:.3f}", flush=True)
    slices = {"tuning": [], "reporting": [experiment.digest(images.numpy())]}
    experiment.record(arguments.out, __doc__, {"rows": rows, "content": content, "slices": slices})


def trained(images: torch.Tensor, labels: torch.Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, CHANNELS, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS),
        nn.Conv2d(CHANNELS, 64, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / STEPS)
        some = torch.randint(len(images), (128,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(network(images[some]), labels[some]).backward()
        optimizer.step()
    return network.eval()


def ways(network: nn.Module, sums: dict[str, wise.LayerSums], bits: float) -> list[tuple[str, wise.Widths, Any]]:
    """(name, widths, sums to round with)."""
    found = [
        (f"a width for each {by}", wise.bit_map(network, sums, bits=bits, by=by), sums) for by in ("layer", "stride")
    ]
    if bits == int(bits):
        uniform = wise.uniform_map(network, sums, int(bits))
        whole = copy.deepcopy(sums)
        for own in whole.values():
            own.stride = own.covariance.shape[1]
        found.append(("one width", uniform, sums))
        found.append(("one width, nearest", wise.uniform_map(network, whole, int(bits)), whole))
    return found


def rounded(network: nn.Module, sums: dict[str, wise.LayerSums], widths: wise.Widths) -> nn.Module:
    other = copy.deepcopy(network)
    wise.round_network(other, sums, widths)
    return other


def measured(network: nn.Module, original: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    with torch.no_grad():
        ours, theirs = (one(images).double().log_softmax(1) for one in (network, original))
    kl = (theirs.exp() * (theirs - ours)).sum(1).mean()
    return {"kl": float(kl), "accuracy": float((ours.argmax(1) == labels).double().mean())}


def of_content(network, sums, images, labels, used, unseen, seed) -> list[dict[str, Any]]:
    """Divergence on test images of one half of the digits under the map of each half, and of all."""

    def of(places: torch.Tensor, half: range) -> torch.Tensor:
        return places[torch.isin(labels[places], torch.tensor(list(half)))]

    own = {name: wise.patch_sums(network, [images[of(used, half)]], seed=seed) for name, half in HALVES.items()}
    rows = []
    for (name, half), by in itertools.product(HALVES.items(), ("layer", "stride")):
        test = of(unseen, half)
        for whose, some in {"all digits": sums, **own}.items():
            widths = wise.bit_map(network, some, bits=3.0, by=by)
            found = measured(rounded(network, some, widths), network, images[test], labels[test])
            kind = "its own" if whose == name else "all digits" if whose == "all digits" else "the other half's"
            rows.append({"seed": seed, "content": name, "by": by, "map": kind} | found)
    return rows


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs: intervals over networks, paired with one width and with the map for all digits."""
    rows, main = results["rows"], []
    for bits, how in dict.fromkeys((row["bits"], row["how"]) for row in rows):
        own = [row for row in rows if (row["bits"], row["how"]) == (bits, how)]
        against = ""
        if base := [row["kl"] for row in rows if (row["bits"], row["how"]) == (bits, "one width")]:
            against = (
                experiment.cell(experiment.ratio([row["kl"] for row in own], base), ".2f") if how != "one width" else ""
            )
        accuracy = experiment.cell(experiment.over_seeds([100 * row["accuracy"] for row in own]), ".1f")
        kl = f"{np.mean([row['kl'] for row in own]):.4f}"
        main.append([f"{bits:g}", how, kl, against, accuracy])
    content = []
    for name, by in itertools.product(HALVES, ("layer", "stride")):
        of = {
            kind: [
                row["kl"] for row in results["content"] if (row["content"], row["by"], row["map"]) == (name, by, kind)
            ]
            for kind in ("its own", "all digits", "the other half's")
        }
        for kind, kl in of.items():
            beside = experiment.cell(experiment.ratio(kl, of["all digits"]), ".2f") if kind != "all digits" else ""
            content.append([name, by, kind, f"{np.mean(kl):.4f}", beside])
    return {
        "main": experiment.table("bits | widths | KL | against one width (95 %) | accuracy, % (95 %)", main),
        "content": experiment.table(
            "measured on | widths by | map and sums of | KL | against all digits (95 %)", content
        ),
    }


if __name__ == "__main__":
    main()
