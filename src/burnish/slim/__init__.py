"""Mixtures of experts made smaller: experts narrower (SlimMoE), in pieces or fewer, and fewer attention groups."""
