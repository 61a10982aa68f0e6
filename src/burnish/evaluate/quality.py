"""Cross-entropy of a network on windows of text, and its divergence from a reference, per sequence.

Both networks see the same window one after the other, and both chunks of logits meet position by position, so the
divergence is exact: over the whole vocabulary and all positions, with nothing cached or truncated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.core.progress import Progress
from burnish.data.windows import Slice
from burnish.evaluate.forward import CHUNK_TOKENS, ChunkedLogits
from burnish.evaluate.maths.divergence import cross_entropy, kl_divergence, normalise, top1_agreement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_ROWS = 2

Sequences = dict[str, list[float]]
"""Columns of per-sequence sums: `tokens`, `bytes`, `nats`, and with a reference `kl` and `agreeing`."""


@torch.inference_mode()
def measure_quality(
    module: PreTrainedModel,
    text: Slice,
    *,
    reference: PreTrainedModel | None = None,
    vocabulary: int | None = None,
    chunk: int = CHUNK_TOKENS,
    progress: Progress | None = None,
) -> Sequences:
    """Sums over the predicted tokens of every window.

    Args:
        module: a causal language model in evaluation mode.
        text: the windows.
        reference: the network to diverge from, with the same vocabulary. `module` itself gives zero divergence and full
            agreement without a second pass.
        vocabulary: tokens, from the first on, over which the two are compared; None for all.
        chunk: positions whose logits are held at once.
        progress: shows a bar over tokens.

    Returns:
        One value per window: `tokens` predicted, `bytes` of text behind them, `nats` of cross-entropy, and with a
        reference `kl` (sum of KL(reference || module) in nats) and `agreeing` (tokens both put first).

    Raises:
        NumericalError: a logit is not finite.
    """
    ours = ChunkedLogits(module, name="the model", chunk=chunk)
    theirs = None
    if reference is not None and reference is not module:
        theirs = ChunkedLogits(reference, name="the reference", chunk=chunk)
    rows: list[dict[str, float]] = []
    with (progress or Progress(enabled=False)).task("measuring quality", text.tokens.numel(), "tokens") as task:
        for index, window in enumerate(text.tokens):
            sums = torch.zeros(3, dtype=torch.float64, device=module.device)
            targets = iter(window[1:].to(module.device).split(chunk))
            other = theirs.chunks(window, index=index) if theirs else None
            for logits in ours.chunks(window, index=index):
                reference_logits = None if other is None else next(other).to(module.device)
                sums += chunk_sums(logits, next(targets), reference_logits, vocabulary)
            nats, kl, agreeing = sums.tolist()
            num_predicted = float(len(window) - 1)
            row = {"tokens": num_predicted, "bytes": float(text.num_bytes[index]), "nats": nats}
            if theirs is not None:
                row |= {"kl": kl, "agreeing": agreeing}
            elif reference is module:
                row |= {"kl": 0.0, "agreeing": num_predicted}
            rows.append(row)
            task.advance(len(window))
            task.note(f"perplexity {np.exp(sum(r['nats'] for r in rows) / sum(r['tokens'] for r in rows)):.2f}")
    return {key: [row[key] for row in rows] for key in rows[0]}


def chunk_sums(
    logits: Float[Tensor, "tokens vocab"],
    targets: Int[Tensor, " tokens"],
    reference_logits: Float[Tensor, "tokens other_vocab"] | None = None,
    vocabulary: int | None = None,
) -> Float[Tensor, "3"]:  # noqa: UP037
    """Sums over the tokens of cross-entropy in nats, divergence in nats, and same top tokens, in float64."""
    # On a CPU two rows with their temporaries stay in its cache from one pass over the vocabulary to the next; 128 rows
    # are 25 MB, and fetching that from memory for every pass makes the divergence five times slower.
    rows = CPU_ROWS if logits.device.type == "cpu" else len(logits)
    sums = torch.zeros(3, dtype=torch.float64, device=logits.device)
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        log_q = normalise(logits[part])
        sums[0] += cross_entropy(log_q, targets[part]).double().sum()
        if reference_logits is not None:
            log_p = normalise(reference_logits[part, :vocabulary])
            if log_p.shape != log_q.shape:
                log_q = normalise(logits[part, :vocabulary])
            sums[1] += kl_divergence(log_p, log_q).double().sum()
            sums[2] += top1_agreement(log_p, log_q).sum()
    return sums
