"""Linear programs with a parameter, as functions of arrays."""
