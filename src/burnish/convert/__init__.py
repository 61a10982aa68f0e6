"""Checkpoints in another architecture: a dense model as a mixture of experts (upcycling)."""
