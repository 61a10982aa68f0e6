"""Training what a packed checkpoint keeps beside its codes, scales and norms, against the original's predictions."""
