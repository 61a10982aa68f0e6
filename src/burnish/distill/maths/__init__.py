"""Divergences of logits, hidden-state and router losses, and weights of tokens; all per token, so that sums add up."""
