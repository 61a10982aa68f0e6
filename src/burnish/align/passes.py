"""Rows of a step in forward passes: padded and side by side, or packed one after the other.

    padded   a row is as long as the longest of the pass
    packed   rows stand one after the other in as many lines as keep them full, and see nothing of each other

    shared   packed, and what the answers to one problem begin with in common stands there once

Packed, positions begin anew with every row, and transformers hides one from the other by that alone where no attention
mask is given; shared, a mask says it. Whether a model does so is tried on it first.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.align.maths.balance import lines
from burnish.core.errors import SettingsError
from burnish.train.views import as_taken

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
        rows = rows_of(part)
        filled = lines([len(ids) for ids, _ in rows])
        self._make(part, width, pad, (len(filled), max(sum(len(rows[row][0]) for row in line) for line in filled)))
        for number, line in enumerate(filled):
            at = 0
            for row in line:
                ids, before = rows[row]
                begins, ends = at + before, at + len(ids)
                self.input_ids[number, at:ends] = ids
                self.labels[number, begins - 1 : ends - 1] = ids[before:]  # each by the token before it
                self.position_ids[number, at:ends] = torch.arange(len(ids))
                self._place(row, number, torch.arange(begins - 1, ends - 1))
                at = ends
            self.position_ids[number, at:] = torch.arange(self.input_ids.shape[1] - at)

    def _make(self, part: Batch, width: int, pad: int, shape: tuple[int, int]) -> None:
        """Lines in which nothing stands yet."""
        ids: Tensor = part["completion_ids"]
        self.input_ids, self.labels = ids.new_full(shape, pad), ids.new_full(shape, IGNORED)
        self.position_ids, self.places = ids.new_zeros(shape), ids.new_full((len(ids), width), -1)

    def _place(self, row: int, line: int, columns: Tensor) -> None:
        """The predictions of a row's completion stand in these columns of a line."""
        self.places[row, : len(columns)] = line * self.input_ids.shape[1] + columns

    def model_inputs(self, attention: str) -> dict[str, Tensor]:
        """What a model is given, but for labels.

        Args:
            attention: what transformers calls the implementation in use.
        """
        del attention
        return {"input_ids": self.input_ids, "position_ids": self.position_ids}

    def by_row(self, found: Float[Tensor, "lines length"]) -> Float[Tensor, "rows width"]:
        """Numbers of predictions as rows of completions; 0 where there is no token."""
        return torch.where(self.places >= 0, found.flatten()[self.places.clamp(min=0)], 0.0)


class SharedPass(PackedPass):
    """The same with what rows begin with in common forwarded once: TRL's trie of a group, groups in lines.

    A token sees what stands on its row's way through the trie, by a mask of every pair of places.
    """

    seen: Bool[Tensor, "lines length length"]

    def __init__(self, part: Batch, width: int, pad: int) -> None:
        rows, trie = rows_of(part), tries()
        groups = dict[tuple[int, ...], list[int]]()
        for row, (ids, before) in enumerate(rows):
            groups.setdefault(tuple(ids[:before].tolist()), []).append(row)
        together = list(groups.values())
        sizes = [len(_tree(trie(), rows, group).tokens) for group in together]
        filled = [[row for group in line for row in together[group]] for line in lines(sizes)]
        packed = [_tree(trie(), rows, line).pack() for line in filled]
        length = max(len(one["input_ids"]) for one in packed)
        self._make(part, width, pad, (len(filled), length))
        self.seen = torch.eye(length, dtype=torch.bool, device=self.input_ids.device).repeat(len(filled), 1, 1)
        for number, (line, tree) in enumerate(zip(filled, packed, strict=True)):
            used = slice(0, len(tree["input_ids"]))
            self.input_ids[number, used], self.labels[number, used] = tree["input_ids"], tree["shift_labels"]
            self.position_ids[number, used] = tree["position_ids"]
            self.seen[number, used, used] = _ways(tree).to(self.seen.device)
            drawn = [len(rows[row][0]) - rows[row][1] for row in line]
            for row, columns in zip(line, tree["token_index"].split(drawn), strict=True):
                self._place(row, number, columns)

    def model_inputs(self, attention: str) -> dict[str, Tensor]:
        return super().model_inputs(attention) | {"attention_mask": as_taken(attention, self.seen[:, None])}


def tries() -> Any:
    """TRL's class of a trie."""
    with warnings.catch_warnings():
        # that it may change: the version of TRL is held, and tests hold what is used of it
        warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
        from trl.experimental.async_grpo.packing import TreeRow
    return TreeRow


def rows_of(part: Batch) -> list[tuple[Tensor, int]]:
    """Tokens of each row without padding, and how many of them are its prompt."""
    found = []
    for row, (before, after) in enumerate(
        zip(part["prompt_mask"].sum(1).tolist(), part["completion_mask"].sum(1).tolist(), strict=True)
    ):
        prompt, completion = part["prompt_ids"][row], part["completion_ids"][row]
        found.append((torch.cat([prompt[len(prompt) - before :], completion[:after]]), before))
    return found


def _tree(tree: Any, rows: list[tuple[Tensor, int]], chosen: list[int]) -> Any:
    for row in chosen:
        ids, before = rows[row]
        drawn = (torch.arange(len(ids)) >= before).long()
        tree.add(
            {"input_ids": ids, "completion_mask": drawn, "old_log_probs": drawn, "advantage": 0.0, "group_id": row}
        )
    return tree


def _ways(tree: dict[str, Tensor]) -> Bool[Tensor, "length length"]:
    """Which token sees which: its segment up to itself, and the segments on the way to it."""
    length = len(tree["input_ids"])
    seen = torch.zeros(length, length, dtype=torch.bool)
    starts, ways = tree["tree_cu_seqlens_q"].tolist(), tree["tree_cu_seqlens_k"].tolist()
    for segment, (start, end) in enumerate(itertools.pairwise(starts)):
        way = tree["tree_kv_index"][ways[segment] : ways[segment + 1] - (end - start)]
        seen[start:end, way] = True
        seen[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
    return seen


def check_packing(module: Any, kind: type[PackedPass] = PackedPass) -> None:
    """Raises where a model's logits depend on what stands before in the same line and is not the row's.

    Args:
        module: of transformers; left as it was.
        kind: how rows will stand there.

    Raises:
        SettingsError: they do.
    """
    config = module.config.get_text_config()
    windows = getattr(config, "layer_types", None) or [getattr(config, "sliding_window", None) and "sliding_attention"]
    if kind is SharedPass and "sliding_attention" in windows:
        raise SettingsError(
            f"{type(module).__name__} has layers that see a window, which masks of a trie know nothing of",
            where="share_prefixes",
            fix="leave it out",
        )
    device, size = module.get_input_embeddings().weight.device, config.vocab_size
    ids = (torch.arange(3 * 12, device=device) * 7 + 3).view(3, 12) % size
    ids[1, :3] = ids[0, :3]
    mask = torch.arange(12, device=device) < torch.tensor([[12], [8], [4]], device=device)  # two of them in one line
    part = {"prompt_ids": ids[:, :3], "completion_ids": ids[:, 3:]}
    packed = kind(part | {"prompt_mask": mask[:, :3], "completion_mask": mask[:, 3:]}, 9, 0)
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            alone = module(input_ids=ids, use_cache=False).logits[:, 2:-1].float()
            given = packed.model_inputs(config._attn_implementation)
            found = module(**given, use_cache=False).logits.float()
    finally:
        module.train(training)
    here = packed.places >= 0
    alone, found = alone[here], found.flatten(0, 1)[packed.places[here]]
    if float((alone - found).abs().max()) > SAME * float(alone.abs().max()):
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
