"""Cross-entropy of a network on windows of text, and its divergence from a reference, per sequence.

Both networks see the same window one after the other, and both chunks of logits meet position by position, so the
divergence is exact: over the whole vocabulary and all positions, with nothing cached or truncated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from burnish.core.progress import Progress
from burnish.data.windows import Slice
from burnish.evaluate.forward import CHUNK_TOKENS, ChunkedLogits
from burnish.evaluate.maths.divergence import cross_entropy, kl_divergence, normalise, top1_agreement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sequences = dict[str, list[float]]
"""Columns of per-sequence sums: `tokens`, `bytes`, `nats`, and with a reference `kl` and `agreeing`."""


@torch.inference_mode()
def measure_quality(
    module: PreTrainedModel,
    text: Slice,
    *,
    reference: PreTrainedModel | None = None,
    chunk: int = CHUNK_TOKENS,
    progress: Progress | None = None,
) -> Sequences:
    """Sums over the predicted tokens of every window.

    Args:
        module: a causal language model in evaluation mode.
        text: the windows.
        reference: the network to diverge from, with the same vocabulary. `module` itself gives zero divergence and full
            agreement without a second pass.
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
            num_predicted = len(window) - 1
            row = {"tokens": float(num_predicted), "bytes": float(text.num_bytes[index]), "nats": 0.0}
            if reference is module:
                row |= {"kl": 0.0, "agreeing": float(num_predicted)}
            elif reference is not None:
                row |= {"kl": 0.0, "agreeing": 0.0}
            targets = iter(window[1:].to(module.device).split(chunk))
            other = theirs.chunks(window, index=index) if theirs else None
            for logits in ours.chunks(window, index=index):
                log_q = normalise(logits)
                row["nats"] += cross_entropy(log_q, next(targets)).double().sum().item()
                if other is not None:
                    log_p = normalise(next(other).to(log_q.device))
                    row["kl"] += kl_divergence(log_p, log_q).double().sum().item()
                    row["agreeing"] += top1_agreement(log_p, log_q).sum().item()
            rows.append(row)
            task.advance(len(window))
            task.note(f"perplexity {np.exp(sum(r['nats'] for r in rows) / sum(r['tokens'] for r in rows)):.2f}")
    return {key: [row[key] for row in rows] for key in rows[0]}
