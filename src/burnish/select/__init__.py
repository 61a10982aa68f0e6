"""Rows of a model's own answers that a verifier finds right."""
