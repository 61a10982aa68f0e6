"""Keys and values of grouped-query attention as one latent and one rotary key: a stock `deepseek_v3` checkpoint.

Calibration text goes through the model twice. The first time, through the original layers, it tells what every layer's
attention does with its keys and values; from that come the choices that all layers share: the widths, and the rotary
frequencies. The second time each layer is converted on what the converted layers before it give.

    predicted error of a layer = what pairs lose that stand still or turn at another frequency     (`maths.rotary`)
                               + what the latent has no rank for                                   (`maths.latent`)

both as a share of the layer's attention output, which is how widths are compared.

Sources: CARE (2026, arXiv:2603.17946), TransMLA (2025, arXiv:2502.07864). What differs is on the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.arch import HiddenStates, first_inputs, layers
from burnish.calibrate import Calibration
from burnish.convert.heal import heal
from burnish.convert.latent_config import Widths, tried_widths
from burnish.convert.latent_from_disk import Source
from burnish.convert.latent_layer import AttentionWeights, LayerChoice, Rest
from burnish.convert.latent_network import Choice, fill, network, take_rest
from burnish.convert.latent_norm import nearly_one, shares, steadied, token_costs
from burnish.convert.maths.ranks import greedy_ranks, loss
from burnish.convert.maths.rotary import Directions, extended, grid, kept_everywhere, lost_share
from burnish.convert.moments import Attention, LayerMoments, collect
from burnish.convert.refit import refit
from burnish.core.checkpoint import allocate
from burnish.core.store import Store

if TYPE_CHECKING:
    from transformers import DeepseekV3ForCausalLM, PreTrainedModel

    from burnish.convert.stage import LatentAttention
    from burnish.core.stage import Context

BASES = tuple(number / 20 for number in range(4, 25))
"""Powers of the model's rotary base that are tried as the base of a grid."""
LATENT_FILE = "layer.safetensors"


@dataclass
class Conversion:
    """A model on its way to latent attention.

    Attributes:
        settings, ctx: of the stage.
        source: the network, whose layers are gone from memory once they are converted.
        text: calibration windows.
        key: what the moments depend on.
        stored_dtype: of the result.
    """

    settings: LatentAttention
    ctx: Context
    source: Source
    text: Calibration
    key: dict[str, Any]
    stored_dtype: torch.dtype

    # -- the first time through --------------------------------------------------------------------------------------

    @property
    def module(self) -> PreTrainedModel:
        """Of the source."""
        return self.source.module

    @cached_property
    def frequencies(self) -> Float64[Tensor, " half"]:
        """Of the source, in radians per position."""
        rotary: Any = self.module.base_model.rotary_emb
        return rotary.inv_freq.detach().to("cpu", torch.float64)

    def states(self, module: PreTrainedModel) -> list[HiddenStates]:
        """The text in front of a network's first layer; both networks have the source's embedding."""
        device, own = torch.device(self.ctx.device), module.get_input_embeddings()
        batches = (batch for fold in range(self.text.num_folds) for batch in self.text.batches(fold, device))
        with self.source.embedded():
            weight, own.weight = own.weight, self.module.get_input_embeddings().weight
            try:
                return [first_inputs(module, batch.tokens, batch.mask) for batch in batches]
            finally:
                own.weight = weight

    def first_pass(self) -> Store:
        """The moments of every layer on the original activations."""
        store, number_of_layers = Store(self.ctx.work_dir / "moments"), len(layers(self.module))
        if all(store.find(entry(number), self.key) for number in range(number_of_layers)):
            return store
        text = self.states(self.module)
        with self.ctx.progress.task("reading attention", total=number_of_layers, unit="layers") as task:
            for number, (_, layer) in enumerate(layers(self.module)):
                with self.source.loaded(number):
                    if store.find(entry(number), self.key) is None:
                        with store.writing(entry(number), self.key) as path:
                            collect(Attention(self.module, number), text).write(path)
                    for states in text:
                        states.hidden = states.through(number, layer)
                self.source.left()
                task.advance()
        return store

    def layer(self, attention: Attention, moments: LayerMoments) -> LayerChoice:
        """What turns in a layer."""
        weights = {role: tensor.to("cpu", torch.float64) for role, tensor in attention.weights.items()}
        heads = attention.num_heads, attention.num_key_value_heads
        own = AttentionWeights(weights["q"], weights["k"], weights["v"], weights["o"], *heads)
        reach = self.settings.context or self.text.tokens.shape[1]
        return LayerChoice(own, moments, self.frequencies, extended(moments.distances, reach))

    def original(self, store: Store) -> Iterator[LayerChoice]:
        """Every layer on the original activations."""
        for number in range(len(layers(self.module))):
            path = store.find(entry(number), self.key)
            assert path is not None, "the first pass is finished"
            with self.source.loaded(number, "self_attn."):
                layer = self.layer(Attention(self.module, number), LayerMoments.read(path))
            yield layer

    # -- what all layers share ---------------------------------------------------------------------------------------

    def choose(self, store: Store) -> Choice:
        """Widths and frequencies, with the table of what was compared."""
        settings, config = self.settings, self.module.config
        given = settings.widths(config)
        tried = [given] if given is not None else tried_widths(config, settings.total(config), extra=settings.extra)
        choices = [self.slots(widths, store) for widths in tried]
        if len(choices) == 1:
            return choices[0]
        rows = self.compare(choices, store)
        self.ctx.ledger.table("widths", rows)
        best = min(range(len(rows)), key=lambda number: rows[number]["predicted error"])
        self.ctx.progress.log("\n".join(line(row, number == best) for number, row in enumerate(rows)))
        return choices[best]

    def slots(self, widths: Widths, store: Store) -> Choice:
        """The frequencies for a rotary key of some width."""
        num_slots, theta = widths.rope_dim // 2, float(self.module.config.rope_parameters["rope_theta"])
        mode = self.settings.rope_mode
        if mode == "free":
            found = []
            for layer in self.original(store):
                still = lost_share(layer.mean_distances, self.frequencies, torch.zeros(1, dtype=torch.float64))
                worth = layer.found.energy.unflatten(0, (len(self.frequencies), -1)) * still
                found.append(worth / layer.moments.output)
            return Choice(widths, self.frequencies[kept_everywhere(torch.stack(found), num_slots)], None)
        if mode == "grid":
            bases = [theta**power for power in BASES]
            lost = torch.zeros(len(bases), dtype=torch.float64)
            for layer in self.original(store):
                errors = [layer.assigned(grid(base, num_slots))[1] for base in bases]
                lost += torch.tensor(errors, dtype=torch.float64) / layer.moments.output
            base = bases[int(lost.argmin())]
            return Choice(widths, grid(base, num_slots), base)
        return Choice(widths, grid(theta, num_slots), theta)

    def compare(self, choices: Sequence[Choice], store: Store) -> list[dict[str, Any]]:
        """The predicted error of every way to share the cache, as a mean over layers of shares of the output."""
        settings = self.settings
        rope, rest = torch.zeros(2, len(choices), dtype=torch.float64)
        spectra: list[list[Tensor]] = [[] for _ in choices]
        for layer in self.original(store):
            for number, choice in enumerate(choices):
                kept, lost = layer.assigned(choice.slots)
                after = Rest(layer, kept, choice.slots, averaged=True, constant=settings.extra > 0)
                factors = after.factors(settings.objective, choice.widths.rank - settings.extra)
                rope[number] += lost / layer.moments.output
                rest[number] += after.error(factors, settings.objective) / layer.moments.output
                spectra[number].append(after.factors("attention", 0).spectrum / layer.moments.output)
        num_layers = len(spectra[0])
        rows = []
        for number, choice in enumerate(choices):
            total = (choice.widths.rank - settings.extra) * num_layers
            other = loss(spectra[number], greedy_ranks(spectra[number], total)) / num_layers
            rows.append(
                {
                    "rank": choice.widths.rank,
                    "rope_dim": choice.widths.rope_dim,
                    "predicted error": float(rope[number] + rest[number]) / num_layers,
                    "of rotations": float(rope[number]) / num_layers,
                    "of rank": float(rest[number]) / num_layers,
                    "of rank, if layers could differ": other,
                }
            )
        return rows

    # -- the second time through -------------------------------------------------------------------------------------

    @property
    def _converted(self) -> Store:
        return Store(self.ctx.work_dir / "converted")

    @property
    def _key(self) -> dict[str, Any]:
        return self.key | {"settings": self.settings.canonical()}

    def find(self, number: int) -> Path | None:
        """What is kept of a converted layer, if it is."""
        return self._converted.find(entry(number), self._key)

    def kept(self, number: int) -> Path:
        """The file of it, once it must be there."""
        path = self.find(number)
        assert path is not None, "every layer is converted"
        return path / LATENT_FILE

    def convert(self, choice: Choice, store: Store) -> DeepseekV3ForCausalLM:
        """The new network in the dtype in which it is stored; without weights where those of the source are on disk.

        What is made of a layer is kept (`kept`), so that a conversion that was stopped goes on behind it.
        """
        new = network(self.module, choice, self.settings)
        text, after = self.states(self.module), self.states(new)
        original = self.states(self.module) if self.settings.refit or self.settings.heal_tokens else []
        with self.ctx.progress.task("converting", total=len(layers(new)), unit="layers") as task:
            for number, (_, layer) in enumerate(layers(new)):
                with self.source.loaded(number):
                    allocate(layer, self.module.dtype, self.ctx.device)
                    take_rest(new, self.module, number)
                    self.make(new, number, text, after, original, choice, store)
                    for before, states in zip(text, after, strict=True):
                        states.hidden = before.hidden = states.through(number, layer)
                    for states in original:
                        states.hidden = states.through(number, self.source.layer(number))
                self.source.leave(number, layer, self.stored_dtype)
                task.advance()
        rows = [row_of(self.kept(number)) for number in range(len(layers(new)))]
        self.ctx.ledger.table("latent", rows)
        if self.source.on_disk is None:
            allocate(new, self.stored_dtype, self.ctx.device)
            new.tie_weights()
            take_rest(new, self.module, None)
        return new

    def make(
        self,
        new: DeepseekV3ForCausalLM,
        number: int,
        text: Sequence[HiddenStates],
        after: Sequence[HiddenStates],
        original: Sequence[HiddenStates],
        choice: Choice,
        store: Store,
    ) -> None:
        """Fills the attention of a layer with what is kept of it, which is made first where there is nothing."""
        settings = self.settings
        if (path := self.find(number)) is not None:
            fill(new, number, load_file(path / LATENT_FILE))
            return
        tensors, row = self.converted(Attention(self.module, number), text, choice, store)
        fill(new, number, tensors)
        if settings.refit:
            tensors["o"], *errors = refit(self.module, new, number, original, after)
            row |= dict(zip(("output error", "output error, refitted"), errors, strict=True))
            fill(new, number, tensors)
        if settings.heal_tokens:
            constant = settings.extra > 0
            how: dict[str, Any] = {"tokens": settings.heal_tokens, "constant": constant}
            healed, errors = heal(self.module, new, number, original, after, **how)
            tensors |= healed
            row |= errors
            fill(new, number, tensors)
        with self._converted.writing(entry(number), self._key) as path:
            save_file(tensors, path / LATENT_FILE, {name: str(value) for name, value in row.items()})

    def converted(
        self, attention: Attention, text: Sequence[HiddenStates], choice: Choice, store: Store
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a layer's attention, by role, and the row of the ledger's table."""
        settings = self.settings
        path = store.find(entry(attention.number), self.key)
        assert path is not None, "the first pass is finished"
        sees_changes = settings.sequential and attention.number > 0
        moments = collect(attention, text) if sees_changes else LayerMoments.read(path)
        layer = self.layer(attention, moments)
        kept, lost = self.turning(layer, choice)
        averaged = settings.rope_mode in ("free", "grid")
        rest = Rest(layer, kept, choice.slots, averaged=averaged, constant=settings.extra > 0)
        factors = rest.factors(settings.objective, choice.widths.rank - settings.extra)
        costs = token_costs(rest, attention, text)
        weights = torch.full_like(costs, 1 / len(costs)) if settings.norm == "fold" else shares(costs)
        functional = nearly_one(attention, text, weights) if settings.norm == "functional" else None
        made = rest.weights(factors, settings.objective, settings.norm, functional)
        norm = steadied(made, attention, text, costs, weights)
        row: dict[str, Any] = {"layer": attention.number}
        if lost is not None:
            row["of rotations"] = float(lost / moments.output)
        row["of rank"] = float(rest.error(factors, settings.objective) / moments.output)
        row |= {"of norm": float(norm.error / moments.output), "variation of the norm": norm.variation}
        tensors = {"q": made.q, "kv_a": made.kv_a, "kv_b": made.kv_b, "o": layer.weights.o}
        tensors["norm"] = norm.weight * made.gains
        if made.bias is not None:
            tensors["bias"] = made.bias
        return {name: tensor.contiguous() for name, tensor in tensors.items()}, row

    def turning(self, layer: LayerChoice, choice: Choice) -> tuple[Directions, float | None]:
        """What a layer keeps turning, and the predicted error, where it can be predicted."""
        if self.settings.rope_mode in ("free", "grid"):
            return layer.assigned(choice.slots)
        return layer.folded(len(choice.slots), self.settings.fold), None


def entry(number: int) -> str:
    return f"layer{number:03d}"


def line(row: dict[str, Any], chosen: bool) -> str:
    """A row of the comparison, for the log."""
    mark = "  <- chosen" if chosen else ""
    return f"rank {row['rank']}, rope_dim {row['rope_dim']}: predicted error {row['predicted error']:.4f}{mark}"


def row_of(file: Any) -> dict[str, Any]:
    """The ledger's row of a layer, which lies in its file."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        found = opened.metadata()
    return {"layer": int(found.pop("layer"))} | {name: float(value) for name, value in sorted(found.items())}
