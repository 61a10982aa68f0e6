"""LongPPL (2024, arXiv:2410.23771): perplexity of the tokens that need the context beyond the nearest thousands.

settings  what is measured
measure   a model, by the tokens that an evaluator chooses
"""
