"""WikiText's tokenised form back to ordinary text.

WikiText (Pointer Sentinel Mixture Models, 2016, arXiv:1609.07843) is distributed with spaces around punctuation and
markers such as ` @-@ `. A model that never saw that form is charged for it, so perplexity is measured on the
detokenised text. Numbers on the two forms differ and must not be compared.
"""

from __future__ import annotations

import re

REPLACEMENTS = (
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" , ", ", "),
    (" . ", ". "),
    (" 's", "'s"),
    (" ; ", "; "),
    (" : ", ": "),
    ("( ", "("),
    (" )", ")"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    ("<unk>", "unk"),
)
"""In this order: a later replacement sees what an earlier one left."""

_QUOTED = re.compile(r'" ([^"]*) "')


def detokenise(text: str) -> str:
    """The text with punctuation joined to its words, number separators restored and quotation marks closed up."""
    for old, new in REPLACEMENTS:
        text = text.replace(old, new)
    return _QUOTED.sub(r'"\1"', text)
