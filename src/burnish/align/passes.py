"""Rows of a step in forward passes: padded and side by side, or packed one after the other.

    padded   a row is as long as the longest of the pass
    packed   rows stand one after the other in as many lines as keep them full, and see nothing of each other

Packed, positions begin anew with every row, and transformers hides one from the other by that alone where no attention
mask is given. Whether a model does is tried on it first.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.align.maths.balance import lines
from burnish.core.errors import SettingsError

Batch = dict[str, Any]

IGNORED = -100
"""Label of a token whose probability is not asked for."""
SAME = 1e-4
"""Largest difference of logits that are the same but for rounding, against the largest logit."""


class PackedPass:
    """Rows of a pass in lines, and where each token's prediction stands there.

    Args:
        part: prompts, which end at the right, and completions, which begin at the left, with their masks.
        width: tokens of the longest completion, or more.
        pad: the padding token.
    """

    input_ids: Int[Tensor, "lines length"]
    position_ids: Int[Tensor, "lines length"]
    labels: Int[Tensor, "lines length"]
    places: Int[Tensor, "rows width"]

    def __init__(self, part: Batch, width: int, pad: int) -> None:
        prompts, answers = part["prompt_mask"].sum(1).tolist(), part["completion_mask"].sum(1).tolist()
        lengths = [one + other for one, other in zip(prompts, answers, strict=True)]
        filled = lines(lengths)
        shape = len(filled), max(sum(lengths[row] for row in line) for line in filled)
        ids: Tensor = part["completion_ids"]
        self.input_ids, self.labels = ids.new_full(shape, pad), ids.new_full(shape, IGNORED)
        self.position_ids, self.places = ids.new_zeros(shape), ids.new_full((len(ids), width), -1)
        for number, line in enumerate(filled):
            at = 0
            for row in line:
                before, after = prompts[row], answers[row]
                begins, ends = at + before, at + lengths[row]
                self.input_ids[number, at:begins] = part["prompt_ids"][row, part["prompt_ids"].shape[1] - before :]
                self.input_ids[number, begins:ends] = ids[row, :after]
                self.labels[number, begins - 1 : ends - 1] = ids[row, :after]  # each by the token before it
                self.position_ids[number, at:ends] = torch.arange(lengths[row])
                self.places[row, :after] = number * shape[1] + begins - 1 + torch.arange(after)
                at = ends
            self.position_ids[number, at:] = torch.arange(shape[1] - at)

    def by_row(self, found: Float[Tensor, "lines length"]) -> Float[Tensor, "rows width"]:
        """Numbers of predictions as rows of completions; 0 where there is no token."""
        return torch.where(self.places >= 0, found.flatten()[self.places.clamp(min=0)], 0.0)


def check_packing(module: Any) -> None:
    """Raises where a model's logits depend on what stands before in the same line.

    Args:
        module: of transformers; left as it was.

    Raises:
        SettingsError: they do.
    """
    device, size = module.get_input_embeddings().weight.device, module.config.get_text_config().vocab_size
    ids = (torch.arange(24, device=device) * 7 + 3)[None] % size
    positions = torch.arange(12, device=device).repeat(2)[None]
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            alone = module(input_ids=ids[:, 12:], use_cache=False).logits[0].float()
            packed = module(input_ids=ids, position_ids=positions, use_cache=False).logits[0, 12:].float()
    finally:
        module.train(training)
    if float((alone - packed).abs().max()) > SAME * float(alone.abs().max()):
        raise SettingsError(
            f"{type(module).__name__} does not keep rows apart that stand in one line: a row's logits change with what "
            "stands before it",
            where="packing",
            fix="leave packing out",
        )


def flat(parts: list[Batch]) -> dict[str, Tensor]:
    """What a generation was cut into, under names that tell the part."""
    return {f"{number} {name}": value.clone() for number, part in enumerate(parts) for name, value in part.items()}


def parts_of(flat: dict[str, Tensor]) -> list[Batch]:
    """The inverse of `flat`."""
    parts: dict[int, Batch] = {}
    for name, value in flat.items():
        number, _, key = name.partition(" ")
        parts.setdefault(int(number), {})[key] = value
    return [parts[number] for number in sorted(parts)]


def chosen(inputs: Batch, rows: Tensor, mask: Tensor) -> tuple[Batch, int]:
    """The columns by token of some rows, without those that only others had, and the width of their completions.

    Args:
        inputs: a pass.
        rows: numbers of its rows.
        mask: 1 on the tokens that count, of all rows.
    """
    by_row = {name: value[rows] for name, value in inputs.items() if _by_token(name, value, len(mask))}
    return _trimmed(by_row, mask[rows])


def _by_token(name: str, value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and name != "advantages" and value.dim() == 2 and value.shape[0] == rows


def _trimmed(part: Batch, mask: Tensor) -> tuple[Batch, int]:
    """Prompts end at the right, answers begin at the left."""
    before = int(part["prompt_mask"].sum(1).max())
    width = max(int((mask > 0).sum(1).max()), int(part["completion_mask"].sum(1).max()), 1)
    return {
        name: value[:, value.shape[1] - before :] if name.startswith("prompt") else value[:, :width]
        for name, value in cast(dict[str, Tensor], part).items()
    }, width
