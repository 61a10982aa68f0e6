"""Mixtures of experts made smaller: every expert narrower (SlimMoE), fewer attention groups, or fewer experts."""
