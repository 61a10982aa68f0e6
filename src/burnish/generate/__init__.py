"""Sampling from a transformers model in batches that finished rows leave, with the log-probability of every token.

from burnish.generate import generate

for sample in generate(model, tokenizer, ["3a+4b*2"], n=16, max_new_tokens=64, seed=0):
    sample.text, sample.tokens, sample.logprobs, sample.finish_reason
"""

from burnish.generate.batch import Sample
from burnish.generate.engine import Engine
from burnish.generate.sampler import generate
from burnish.generate.warp import Sampling

__all__ = ["Engine", "Sample", "Sampling", "generate"]
