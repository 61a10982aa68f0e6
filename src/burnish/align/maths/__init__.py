"""Preference losses on plain vectors of margins. Imports torch, numpy, scipy and jaxtyping only."""
