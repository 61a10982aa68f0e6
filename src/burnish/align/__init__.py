"""Preference learning from labels that are weak, strong or wrong: losses, TRL trainers, a stage and a label audit."""
