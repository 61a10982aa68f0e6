"""Steering in transformers: hooks on output projections, for the time of a `with` block.

    with steer(model, vectors, coef=-1, top=0.38) as steering:
        model.generate(**inputs)
    steering.counts      # SteeringCounts(seen=412, flagged=31, visited=310, gated=122, moved=118)

Only tokens that are decoded are steered: a pass over one token of each row behind a cache that holds something. Prompts
hold blank lines too, and stay as they are. A row is left alone after its end of thinking.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from burnish.core.errors import EngineError, SettingsError
from burnish.steer.maths.intervene import Mode, steered
from burnish.steer.vectors import LayerHeads, Vectors, output_projections

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.core.checkpoint import Model


@dataclass
class SteeringCounts:
    """What happened inside a block.

    Attributes:
        seen: tokens that were decoded, those of rows that have ended and are only padded included.
        flagged: of them, tokens that end a step before the end of thinking; the second of two separators ends none.
        visited: flagged tokens times the layers whose hook has met them.
        gated: of these, times heads, how many gates were open (more than half).
        moved: of those visited, how many outputs were changed.
    """

    seen: int = 0
    flagged: int = 0
    visited: int = 0
    gated: int = 0
    moved: int = 0

    def check(self, num_layers: int) -> None:
        """Refuses to have been passed by.

        Args:
            num_layers: that are steered.

        Raises:
            EngineError: fewer tokens were met than there were: the network ran without what steers it.
        """
        if self.visited != self.flagged * num_layers:
            raise EngineError(
                f"steering was asked for and met {self.visited:,} of {self.flagged * num_layers:,} outputs",
                where="steer",
                fix="compile the model inside of the block, or not at all",
            )


class Steering:
    """A running intervention.

    Attributes:
        vectors: of the chosen heads.
        coef, mode: see `burnish.steer.maths.intervene`.
        counts: see `SteeringCounts`.
    """

    def __init__(self, vectors: Vectors, coef: float, mode: Mode) -> None:
        self.vectors, self.coef = vectors, coef
        self.mode: Mode = mode
        self.counts = SteeringCounts()
        marks = vectors.marks
        self._separators = torch.tensor(marks.separator_ids, dtype=torch.long)
        self._think_ends = torch.tensor(marks.think_end_ids, dtype=torch.long)
        self._blanks = torch.tensor(marks.blank_ids, dtype=torch.long)
        self._layers = vectors.by_layer()
        self._flags: Tensor | None = None
        self._ended: Tensor | None = None
        self._begun: Tensor | None = None
        self._given: tuple[Tensor, Tensor] | None = None

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def before_pass(self, rows: Sequence[Sequence[int]]) -> None:
        """Says which tokens each row of the next pass has written: for batches whose rows come and go.

        `burnish.generate.generate(..., observer=steering)` calls it.
        """
        marks = self.vectors.marks
        ended = torch.tensor([not marks.think_ends.isdisjoint(row) for row in rows], dtype=torch.bool)
        begun = torch.tensor([marks.is_begun(row[:-1]) for row in rows], dtype=torch.bool)
        self._given = ended, begun

    def before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the whole model: which tokens of the pass are steered."""
        ids, cache = kwargs.get("input_ids", args[0] if args else None), kwargs.get("past_key_values")
        given, self._given, self._flags = self._given, None, None
        if ids is None or ids.shape[1] != 1 or cache is None or int(cache.get_seq_length()) == 0:
            self._ended = self._begun = None  # a prompt, or a piece of one
            return
        tokens = ids[:, 0]
        if given is not None:
            ended, begun = (one.to(ids.device) for one in given)
        else:
            nothing = torch.zeros_like(tokens, dtype=torch.bool)
            ended = nothing if self._ended is None else self._ended
            begun = nothing if self._begun is None else self._begun
            if len(ended) != len(tokens):
                raise SettingsError(
                    f"the batch had {len(ended)} rows and now has {len(tokens)}, so nobody knows which have ended",
                    where="steer",
                    fix="in burnish.generate pass observer=steering",
                )
        self._ended = ended | torch.isin(tokens, self._think_ends.to(ids.device))
        separates = torch.isin(tokens, self._separators.to(ids.device))
        begun = begun | ~torch.isin(tokens, self._blanks.to(ids.device))
        self._begun = begun & ~separates
        self._flags = separates & begun & ~self._ended
        self.counts.seen += len(tokens)
        self.counts.flagged += int(self._flags.sum())

    def behind_projection(self, layer: int, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Forward hook of a layer's output projection."""
        if self._flags is None or not bool(self._flags.any()):
            return None
        heads = self._on(layer, output.device)
        rows = output.reshape(-1, output.shape[-1])
        options: dict[str, Any] = {"targets": heads.targets, "coef": self.coef, "mode": self.mode}
        moved, gates = steered(rows, heads.probes, heads.directions, self._flags, **options)
        self.counts.visited += int(self._flags.sum())
        self.counts.gated += int((gates > 0.5).sum())
        self.counts.moved += int((moved != rows).any(1).sum())
        return moved.reshape(output.shape)

    def _on(self, layer: int, device: torch.device) -> LayerHeads:
        if self._layers[layer].probes.device != device:
            self._layers[layer] = self._layers[layer].to(device)
        return self._layers[layer]


@contextmanager
def steer(
    model: Model | PreTrainedModel,
    vectors: Vectors,
    *,
    coef: float = -1.0,
    top: float = 0.38,
    mode: Mode = "threshold",
) -> Iterator[Steering]:
    """Steers whatever the model decodes inside the block; afterwards the model is bit for bit what it was.

    Rows must stay in their places while they are decoded: greedy and sampled `generate` do that, beam search does not.

    Args:
        model: that the vectors were made on.
        vectors: from `read_vectors` or `calibrate`.
        coef: -1 takes the direction away, -4 is the default of the authors' release, 0 changes nothing.
        top: share of the heads, or how many (above 1), the most accurate first.
        mode: see `burnish.steer.maths.intervene`.

    Raises:
        CheckpointError: vectors of another model.
        SettingsError: a setting out of its range.
        EngineError: at the end, where hooks were passed by.
    """
    if not math.isfinite(coef):
        raise SettingsError(f"is {coef}, which is no number", where="coef")
    chosen = vectors.best(top)
    chosen.check_mode(mode)
    if top > len(vectors.heads):
        warnings.warn(f"top is {top:g}, but there are {len(vectors.heads)} heads; all are used", stacklevel=3)
    module = vectors.check(model)
    steering = Steering(chosen, float(coef), mode)
    projections = output_projections(module)
    eager: Any = torch.compiler.disable  # hooks ask the data whether to do anything, and count
    with ExitStack() as stack:
        before = eager(steering.before_model)
        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        for layer in chosen.by_layer():
            hook = eager(partial(steering.behind_projection, layer))
            stack.callback(projections[layer].owner.register_forward_hook(hook).remove)
        yield steering
    steering.counts.check(steering.num_layers)
