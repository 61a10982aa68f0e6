"""Rows of key-value retrieval in single characters: what `benchmarks/long_context.py` trains on.

    burnish init examples/retriever.json --tokenizer bpe:257 --data src/burnish/reason/prompts -o models/retriever-start
    python examples/retrieval_rows.py models/retriever-start runs/retrieval

Every row is a haystack with pairs and a dozen questions, of which the values alone count in the loss; files

    copies.jsonl             letters twice: looking at what stood behind an earlier one is learned here
    three, six, short.jsonl  haystacks of 12, 24 and 48 characters
    long.jsonl               haystacks of 288 characters whose pairs stand in the last 36: no evidence is far away
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from burnish.data.packing import IGNORED
from burnish.evaluate.ruler.letters import ASKS, FILLING, KEYS, VALUES, haystack

QUESTIONS = 12
SHORT, LONG, NEAR, PAIRS = 48, 288, 36, 6
ROWS = {"copies": 5000, "three": 2500, "six": 2500, "short": 3500, "long": 600}


def marked(text: str, counts: list[bool], tokens: dict[str, int]) -> dict[str, Any]:
    """A row in which the characters that count have a loss."""
    ids = [tokens[character] for character in text]
    labels = [token if count else IGNORED for token, count in zip(ids, counts, strict=True)]
    messages = [{"role": "user", "content": text.partition(ASKS)[0]}, {"role": "assistant", "content": text[-1]}]
    return {"messages": messages, "input_ids": ids, "labels": labels}


def asked(rng: random.Random, length: int, num_pairs: int, near: int | None = None) -> tuple[str, list[bool]]:
    """A haystack and questions, any pair perhaps several times."""
    letters = haystack(rng, length, num_pairs, near)
    questions = "".join(key + letters.pairs[key] for key in rng.choices(list(letters.pairs), k=QUESTIONS))
    counts = [False] * (length + 1) + [False, True] * QUESTIONS
    return letters.text + ASKS + questions, counts


def copied(rng: random.Random) -> tuple[str, list[bool]]:
    """Letters, and the same once more: what looks at the token behind an earlier one is learned here."""
    letters = "".join(rng.sample(KEYS + VALUES, rng.randint(6, 24)))
    before = "".join(rng.choices(KEYS + VALUES, k=rng.randint(0, 7)))
    counts = [False] * (len(before) + len(letters) + 2) + [True] * (len(letters) - 1)
    return before + letters + ASKS + letters, counts


def rows(kind: str, num: int, seed: int, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Rows of a phase, or of long haystacks, for a tokenizer of which every character is one token."""
    rng = random.Random(f"{seed}/{kind}")
    made = {
        "copies": lambda: copied(rng),
        "three": lambda: asked(rng, 12, 3),
        "six": lambda: asked(rng, 24, 6),
        "short": lambda: asked(rng, SHORT, PAIRS),
        "long": lambda: asked(rng, LONG, PAIRS, NEAR),
    }[kind]
    tokens = {character: tokenizer(character)["input_ids"][0] for character in FILLING + KEYS + VALUES + ASKS}
    return (marked(*made(), tokens) for _ in range(num))


def main(model: str, directory: str) -> None:
    from transformers import AutoTokenizer

    tokenizer, place = AutoTokenizer.from_pretrained(model), Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    for kind, num in ROWS.items():
        lines = (json.dumps(row) for row in rows(kind, num, 0, tokenizer))
        (place / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
