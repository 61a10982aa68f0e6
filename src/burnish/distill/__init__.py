"""Distillation: a student learns a teacher's distributions, hidden states and routing, over the one training loop."""
