"""Proposals for the next tokens out of what was said before, without a draft model

from burnish.generate import generate
from burnish.serve.speculate import Lookahead

memory = Lookahead()
samples = generate(model, tokenizer, prompts, max_new_tokens=200, temperature=0, speculate=memory)
memory.counts.tokens, memory.counts.saved
"""

from burnish.serve.speculate.draft import Draft
from burnish.serve.speculate.memory import Lookahead, LookaheadRequest
from burnish.serve.speculate.trie import Trie

__all__ = ["Draft", "Lookahead", "LookaheadRequest", "Trie"]
