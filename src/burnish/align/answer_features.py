"""Features of answers for the label audit: what a frozen language model makes of them, and which words they use.

`hidden_features`: hidden states of the answer's tokens, averaged, at a few depths of a frozen model that reads prompt
and answer. `word_features`: term frequency times inverse document frequency of the answer's tokens and neighbouring
pairs of tokens, hashed to a fixed width (TF-IDF; Sparck Jones, 1972). `nuisance_features`: length, refusal and form.
None looks at a label.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from burnish.align.kept_arrays import KeptArrays

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.core.progress import Progress

HASH_WIDTH = 2**16
TOKENS_PER_BATCH = 4096
PROMPT_TOKENS = 32
"""What a long answer leaves of `max_length` for the end of its prompt."""


def hidden_features(
    model: Model,
    texts: Sequence[tuple[str, str]],
    *,
    depths: Sequence[float],
    max_length: int,
    progress: Progress,
    kept: KeptArrays | None = None,
) -> np.ndarray:
    """Mean hidden state over each answer's tokens, float32 [texts, depths * hidden_size].

    Args:
        model: a causal language model or a sequence classifier.
        texts: (prompt, answer).
        depths: in (0, 1]: 0.5 is the layer half-way up, 1 the last one.
        max_length: tokens; the answer loses its end, and the prompt its beginning.
        progress: for the bar.
        kept: where finished batches are kept.
    """
    kept = kept or KeptArrays()
    module: Any = model.module.base_model
    device = next(module.parameters()).device
    num_layers = module.config.get_text_config().num_hidden_layers
    layers = [max(1, round(depth * num_layers)) for depth in depths]
    encoded = [_encode(model, prompt, answer, max_length) for prompt, answer in texts]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index][0]) + len(encoded[index][1]))
    features = np.zeros((len(encoded), len(layers) * module.config.get_text_config().hidden_size), dtype=np.float32)

    def read(batch: list[int]) -> np.ndarray:
        longest = sum(map(len, encoded[batch[-1]]))
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, index in enumerate(batch):
            tokens = [*encoded[index][0], *encoded[index][1]]
            ids[place, : len(tokens)] = torch.tensor(tokens)
            mask[place, : len(tokens)] = 1
        states = module(
            input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True, use_cache=False
        ).hidden_states
        found = []
        for place, index in enumerate(batch):
            start, end = len(encoded[index][0]), sum(map(len, encoded[index]))
            found.append(torch.cat([states[layer][place, start:end].float().mean(dim=0) for layer in layers]))
        return torch.stack(found).cpu().numpy()

    with progress.task("reading answers", total=len(encoded), unit="answers") as task, torch.no_grad():
        for number, batch in enumerate(_batches(order, encoded)):
            features[batch] = kept.array(f"states-{number:06d}", lambda batch=batch: read(batch))
            task.advance(len(batch))
    return features


def word_features(model: Model, answers: Sequence[str]) -> sparse.csr_matrix:
    """Hashed TF-IDF of tokens and token pairs, rows of unit length, [answers, HASH_WIDTH]."""
    rows, columns, values = [], [], []
    for row, answer in enumerate(answers):
        tokens = model.tokenizer(answer.strip().lower(), add_special_tokens=False)["input_ids"]
        terms = Counter([(token,) for token in tokens] + list(pairwise(tokens)))
        for term, count in terms.items():
            rows.append(row)
            columns.append(zlib.crc32(repr(term).encode()) % HASH_WIDTH)
            values.append(1.0 + np.log(count))
    counts = sparse.csr_matrix((values, (rows, columns)), shape=(len(answers), HASH_WIDTH))
    frequency = np.bincount(counts.indices, minlength=HASH_WIDTH)
    weighted = counts.multiply(np.log((1 + len(answers)) / (1 + frequency)) + 1).tocsr()
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(length, 1e-12)) @ weighted)


REFUSALS = ("i'm sorry", "i am sorry", "i can't", "i cannot", "i won't", "i'm not able", "as an ai", "i don't think")
FORMS = ("\n", "\n- ", "\n* ", "\n1. ", "`", "**", "?", "!")


def nuisance_features(answers: Sequence[str]) -> np.ndarray:
    """What people may prefer by whatever is said: log of the number of words, refusal, and form, [answers, features].

    Form is the logarithm of how often each of `FORMS` stands in the answer, plus 1.
    """
    rows = []
    for answer in answers:
        plain = answer.strip().lower().replace("\u2019", "'")
        counts = [len(plain.split()), *(plain.count(form) for form in FORMS)]
        rows.append([*np.log1p(counts), float(any(phrase in plain[:200] for phrase in REFUSALS))])
    return np.array(rows)


def _encode(model: Model, prompt: str, answer: str, max_length: int) -> tuple[list[int], list[int]]:
    """Token ids of prompt and answer, read as plain text: a chat template would add the same tokens to every answer."""
    start = model.tokenizer(prompt.rstrip() + "\n", add_special_tokens=False)["input_ids"]
    end = model.tokenizer(" " + answer.strip(), add_special_tokens=False)["input_ids"]
    end = end[: max(1, max_length - PROMPT_TOKENS)]
    room = max_length - len(end)
    return start[-room:], end


def _batches(order: list[int], encoded: list[tuple[list[int], list[int]]]) -> list[list[int]]:
    """Neighbours in length, at most `TOKENS_PER_BATCH` tokens with padding each."""
    batches: list[list[int]] = [[]]
    for index in order:
        if batches[-1] and (len(batches[-1]) + 1) * sum(map(len, encoded[index])) > TOKENS_PER_BATCH:
            batches.append([])
        batches[-1].append(index)
    return batches
