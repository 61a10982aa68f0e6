"""Sampling from a transformers model in batches that finished rows leave, with the log-probability of every token.

from burnish.generate import generate

for sample in generate(model, tokenizer, ["3a+4b*2"], n=16, max_new_tokens=64, seed=0):
    sample.text, sample.tokens, sample.logprobs, sample.finish_reason
"""

from burnish.generate.sampler import Sample, generate
from burnish.generate.warp import Sampling

__all__ = ["Sample", "Sampling", "generate"]
