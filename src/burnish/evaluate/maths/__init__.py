"""Pure functions on tensors: divergence of two distributions, bootstrap intervals."""
