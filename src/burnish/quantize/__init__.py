"""Rounding weights to 2-8 bits: nearest (RTN), one-sided (GPTQ/LDLQ) and two-sided (YAQA), as packed checkpoints."""
