"""Pure functions behind the event models: quadrature, inversion, score matching, Hawkes processes, samplers."""
