"""Losses of preference margins; rewards, advantages and losses of a policy. Torch, numpy, scipy and jaxtyping only."""
