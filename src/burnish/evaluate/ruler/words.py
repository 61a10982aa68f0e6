"""English words out of the text that ships with the package, so that no list need be fetched."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

from burnish.data.read import read_texts

SOURCE = "wikitext2-valid"
NUM_WORDS = 4000


@cache
def words() -> tuple[str, ...]:
    """Words of 3 to 12 letters, written small wherever they stand, the most frequent ones, in alphabetic order."""
    text = "\n".join(read_texts(SOURCE))
    counts = Counter(re.findall(r"(?<![\w-])[a-z]{3,12}(?![\w-])", text))
    return tuple(sorted(word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:NUM_WORDS]))
