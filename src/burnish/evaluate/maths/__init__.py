"""Pure functions on tensors: divergence of two distributions, cross-entropy, agreement."""
