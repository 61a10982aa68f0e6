"""Importance of expert neurons, attention groups and whole experts; what is kept; how the rest is repaired."""
