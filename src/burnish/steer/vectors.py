"""A checkpoint directory of kind `steering`: a probe and a direction for every head, and what they were made of.

    VECTORS/vectors.safetensors    v.{layer}.{head}, w.{layer}.{head} and m.{layer}, float32 (hidden,)
    VECTORS/steering.json          the model, the convention of labels, marks, rank, and how well each head tells
    VECTORS/burnish.json           lineage

The identity of the model is core's, and vectors refuse another one. A checkpoint that burnish made of the model in one
step, a quantized one say, is taken: its lineage names the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.arch import MatrixView, describe, matrices
from burnish.core.checkpoint import (
    CARD_FILE,
    Lineage,
    Model,
    check_made_on,
    check_target,
    hash_directory,
    library_versions,
    read_from,
    saving,
)
from burnish.core.errors import CheckpointError, SettingsError
from burnish.core.kinds import Kind
from burnish.core.outside import answered_for, read_object
from burnish.steer.marks import Marks
from burnish.steer.maths.intervene import MODES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TENSORS, FACTS = "vectors.safetensors", "steering.json"
FORMAT = 2
"""In 2 the tokens that are blank are named."""
CONVENTION = "class 1 is linear: x.w < 0 looks like checking or going back"


@dataclass(frozen=True)
class ProbedHead:
    """How well the probe of one head tells linear from checking steps, on traces it was not fitted on.

    Attributes:
        layer, head: which.
        accuracy: share of held-out steps that it calls right.
        low, high: 95 % interval, whole traces being the observations; None where nobody said.
    """

    layer: int
    head: int
    accuracy: float
    low: float | None = None
    high: float | None = None


class LayerHeads(NamedTuple):
    """What the chosen heads of one layer are steered by, the most accurate first.

    Attributes:
        probes, directions: (heads, hidden).
        targets: along each direction, where linear steps are in the mean; None where nobody measured it.
    """

    probes: Float[Tensor, "heads hidden"]
    directions: Float[Tensor, "heads hidden"]
    targets: Float[Tensor, " heads"] | None

    def to(self, device: torch.device) -> LayerHeads:
        return LayerHeads(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Vectors:
    """Probes and directions.

    Attributes:
        model: identity of the model they belong to; empty where nobody knows.
        heads: the most accurate first.
        probes, directions: of these heads, float32 (heads, hidden); directions have unit length.
        num_heads: of the whole model, over all layers.
        marks: which tokens end a step, and which the thinking.
        rank: of the subspace that the directions lie in.
        made_of: counts of traces and steps, the rate of the larger class, what chance reaches.
        means: {layer: mean of its output over linear steps}, float32 (hidden,); empty where nobody measured it.
    """

    model: str
    heads: tuple[ProbedHead, ...]
    probes: Float[Tensor, "heads hidden"] = field(repr=False)
    directions: Float[Tensor, "heads hidden"] = field(repr=False)
    num_heads: int
    marks: Marks
    rank: int
    made_of: dict[str, Any] = field(default_factory=dict)
    means: dict[int, Float[Tensor, " hidden"]] = field(default_factory=dict, repr=False)

    @property
    def hidden_size(self) -> int:
        return self.probes.shape[1]

    def __post_init__(self) -> None:
        num = len(self.heads)
        for name, tensor in (("probes", self.probes), ("directions", self.directions)):
            if tensor.ndim != 2 or len(tensor) != num:
                raise CheckpointError(f"{name} are {tuple(tensor.shape)}, but there are {num} heads", where="steering")
            if not tensor.isfinite().all():
                raise CheckpointError(f"{name} hold what is no number", where="steering")
        for layer, mean in self.means.items():
            if mean.shape != self.probes.shape[1:] or not mean.isfinite().all():
                raise CheckpointError(f"the mean of layer {layer} is not of this width, or no number", where="steering")
        lengths = self.directions.norm(dim=1)
        if num and float(lengths.min()) == 0:
            head = self.heads[int(lengths.argmin())]
            raise CheckpointError(
                f"the direction of layer {head.layer}, head {head.head} has no length", where="steering"
            )
        if num and float((lengths - 1).abs().max()) > 1e-3:
            raise CheckpointError(f"a direction has the length {float(lengths.max()):.3g}, not 1", where="steering")
        if len({(head.layer, head.head) for head in self.heads}) < num:
            raise CheckpointError("a head occurs twice", where="steering")

    def count(self, top: float) -> int:
        """How many heads `top` is: a share up to 1, a number above; more than there are is all of them."""
        if not 0 < top < math.inf:
            raise SettingsError(f"is {top}", where="top", fix="give a share of the heads, or how many")
        wanted = max(1, round(top * self.num_heads)) if top <= 1 else round(top)
        return min(wanted, len(self.heads))

    def chosen(self, places: Sequence[int]) -> Vectors:
        """Some of the heads, in the order given."""
        index = torch.tensor(places, dtype=torch.long)
        heads = tuple(self.heads[place] for place in places)
        return replace(self, heads=heads, probes=self.probes[index], directions=self.directions[index])

    def best(self, top: float) -> Vectors:
        """The most accurate heads."""
        return self.chosen(range(self.count(top)))

    def by_layer(self) -> dict[int, LayerHeads]:
        """What there is of each layer."""
        places: dict[int, list[int]] = {}
        for place, head in enumerate(self.heads):
            places.setdefault(head.layer, []).append(place)
        found = {}
        for layer, some in sorted(places.items()):
            mean = self.means.get(layer)
            targets = None if mean is None else self.directions[some] @ mean
            found[layer] = LayerHeads(self.probes[some], self.directions[some], targets)
        return found

    def check_mode(self, mode: str) -> None:
        """
        Raises:
            SettingsError: there is no such mode, or it needs means that these vectors have not.
        """
        if mode not in MODES:
            raise SettingsError(f"is {mode!r}", where="mode", fix=f"use one of {', '.join(MODES)}")
        if mode == "mean" and not {head.layer for head in self.heads} <= self.means.keys():
            raise SettingsError(
                "is 'mean', and these vectors were written without the means of linear steps",
                where="mode",
                fix="calibrate again, or use another mode",
            )

    def check_identity(self, model: Model) -> None:
        """
        Raises:
            CheckpointError: they were made on another model.
        """
        if self.model:
            fix = "calibrate them on this one: burnish steer calibrate"
            check_made_on(self.model, model, told="the steering vectors were made on", fix=fix)

    def check(self, model: Model | PreTrainedModel) -> PreTrainedModel:
        """The network, after refusing one that these are not of.

        A transformers model that was read from a directory is known by that directory; of one that was not, layers,
        heads and width alone can be compared.

        Raises:
            CheckpointError: another model, or one without these layers, heads or width.
        """
        module = model.module if isinstance(model, Model) else model
        known = model if isinstance(model, Model) else read_from(model)
        if known is not None:
            self.check_identity(known)
        projections = output_projections(module)
        per_layer = describe(module.config).num_attention_heads
        for head in self.heads:
            view = projections.get(head.layer)
            if view is None or head.head >= per_layer or view.shape[0] != self.hidden_size:
                raise CheckpointError(
                    f"the steering vectors are of layer {head.layer}, head {head.head} and width {self.hidden_size}, "
                    "which this model does not have"
                )
        return module

    def save(self, directory: str | Path, lineage: Lineage, *, overwrite: bool = False) -> Path:
        """Writes them atomically.

        Raises:
            OutputError: the place is taken, or there is no room.
        """
        from safetensors.torch import save_file

        target = Path(directory)
        check_target(target, overwrite=overwrite)
        tensors = {}
        for place, head in enumerate(self.heads):
            tensors[f"w.{head.layer}.{head.head}"] = self.probes[place].float().contiguous().clone()
            tensors[f"v.{head.layer}.{head.head}"] = self.directions[place].float().contiguous().clone()
        for layer, mean in self.means.items():
            tensors[f"m.{layer}"] = mean.float().contiguous().clone()
        facts = {
            "format": FORMAT,
            "model": self.model,
            "convention": CONVENTION,
            "hidden_size": self.hidden_size,
            "num_heads": self.num_heads,
            "rank": self.rank,
            **asdict(self.marks),
            "made_of": self.made_of,
            "heads": [asdict(head) for head in self.heads],
        }
        with saving(target, replace=overwrite) as staging:
            save_file(tensors, staging / TENSORS)
            (staging / FACTS).write_text(json.dumps(facts, indent=1))
            lineage.kind, lineage.files, lineage.versions = Kind.STEERING, hash_directory(staging), library_versions()
            lineage.write(staging)
            (staging / CARD_FILE).write_text(_card(self, lineage))
        return target


def read_vectors(directory: str | Path) -> Vectors:
    """Vectors that `burnish steer` has written.

    Raises:
        CheckpointError: not there, pickled, damaged, or of another convention.
    """
    place = Path(directory)
    if place.suffix in (".pt", ".pth", ".bin", ".pkl"):
        raise CheckpointError("is a pickle", where=str(place), fix="burnish steer import FILE MODEL -o VECTORS")
    if not (place / FACTS).is_file():
        raise CheckpointError(f"has no {FACTS}, so it is no steering file", where=str(place))
    facts = read_object(place / FACTS)
    if facts.get("format") != FORMAT or facts.get("convention") != CONVENTION:
        raise CheckpointError(
            f"has format {facts.get('format')!r} and the convention {facts.get('convention')!r}, which this burnish "
            "does not read",
            where=str(place / FACTS),
            fix="calibrate again, or import again what was imported",
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(place / TENSORS)
        heads = tuple(ProbedHead(**head) for head in facts["heads"])
        marks = Marks(
            facts["separator"],
            tuple(facts["separator_ids"]),
            tuple(facts["blank_ids"]),
            tuple(facts["cues"]),
            facts["think_end"],
            tuple(facts["think_end_ids"]),
        )
        blank = torch.zeros(0, int(facts["hidden_size"]))
        probes, directions = (
            torch.stack([tensors[f"{kind}.{head.layer}.{head.head}"] for head in heads]) if heads else blank
            for kind in "wv"
        )
        means = {int(name[2:]): tensor for name, tensor in tensors.items() if name.startswith("m.")}
        return Vectors(
            facts["model"], heads, probes, directions, facts["num_heads"], marks, facts["rank"], facts["made_of"], means
        )
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"is damaged ({error})", where=str(place), fix="calibrate again") from None


def read_released(path: str | Path, model: Model, marks: Marks) -> Vectors:
    """The vectors of the authors' release, {layer: {head: {accuracy, model_dict: {weight}, steering_vector}}}.

    Unpickled with `weights_only`, which runs no code of the file.

    Raises:
        CheckpointError: not of that form, or not of this model.
    """
    from numpy import dtype, float64
    from numpy._core.multiarray import scalar

    place = Path(path)
    if not place.is_file():
        raise CheckpointError("no such file", where=str(place))
    numbers = [scalar, dtype, type(dtype("float64")), type(dtype("float32")), float64]
    with (
        answered_for(
            "is no file of tensors and numbers alone",  # torch says how to read such a file all the same
            where=str(place),
            fix="take the authors' probe_best.pt",
            quoted=False,
        ),
        torch.serialization.safe_globals(numbers),
    ):
        nested = torch.load(place, map_location="cpu", weights_only=True)
    try:
        rows = [
            (
                ProbedHead(int(layer), int(head), float(one["accuracy"])),
                one["model_dict"]["weight"].detach().float().reshape(-1),
                one["steering_vector"].detach().float().reshape(-1),
            )
            for layer, heads in nested.items()
            for head, one in heads.items()
        ]
        rows.sort(key=lambda row: -row[0].accuracy)
        probes, directions = torch.stack([w for _, w, _ in rows]), torch.stack([v for _, _, v in rows])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        what = f"is not {{layer: {{head: accuracy, model_dict, steering_vector}}}} ({error})"
        raise CheckpointError(what, where=str(place)) from None
    lengths = directions.norm(dim=1, keepdim=True)
    made_of = {"released": place.name, "longest": float(lengths.max()), "shortest": float(lengths.min())}
    heads = tuple(row[0] for row in rows)
    whole = Vectors(model.identity, heads, probes, directions / lengths, len(rows), marks, directions.shape[1], made_of)
    whole.check(model)
    return whole


def output_projections(module: PreTrainedModel) -> dict[int, MatrixView]:
    """{layer: the projection behind its attention heads}; layers of another kind have none.

    Raises:
        SettingsError: no layer has one.
    """
    found = {view.layer: view for view in matrices(module) if view.part == "attention" and view.role == "o"}
    if not found:
        raise SettingsError(
            f"no layer of a {module.config.model_type} model has an output projection of its own behind its heads",
            where="model",
        )
    return {layer: view for layer, view in found.items() if layer is not None}


def _card(vectors: Vectors, lineage: Lineage) -> str:
    best = vectors.heads[:10]
    rows = [f"| {head.layer} | {head.head} | {head.accuracy:.3f} |" for head in best]
    return "\n".join(
        [
            f"# Steering vectors for {lineage.base_model or 'a model'}",
            "",
            "Probes `w` and unit directions `v` of attention heads, read with `safetensors.torch.load_file`; "
            "`burnish.steer.steer(model, vectors)` intervenes with them.",
            "",
            "| layer | head | probe accuracy |",
            "| ---: | ---: | ---: |",
            *rows,
            "",
        ]
    )
