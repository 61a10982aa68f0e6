"""A small draft of a model, made of its own answers: it proposes tokens, out of a part of the vocabulary.

from burnish.distill.speculator import Drafting, read_draft

drafting = Drafting(model, read_draft("draft"))
samples = generate(model.module, model.tokenizer, prompts, max_new_tokens=200, temperature=0, speculate=drafting)
"""

from typing import TYPE_CHECKING

from burnish.core.lazy import lazy

if TYPE_CHECKING:
    from burnish.distill.speculator.draft import EagleDraft, read_draft
    from burnish.distill.speculator.drafting import Drafting

__all__ = ["Drafting", "EagleDraft", "read_draft"]

__getattr__, __dir__ = lazy(__name__, {"Drafting": ".drafting", "EagleDraft": ".draft", "read_draft": ".draft"})
