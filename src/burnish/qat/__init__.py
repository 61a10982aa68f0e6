"""Quantization-aware training: ternary and 2-bit weights learn the original's predictions as they will be stored."""
