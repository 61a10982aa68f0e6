"""Weights of a few levels as a function of what is trained, and the part of low rank beside them."""
