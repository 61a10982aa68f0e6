"""Weights as a function of what is trained, rounded as a checkpoint stores them."""
