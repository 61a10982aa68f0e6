"""Training in phases, each with data and an end of its own, and a guard over what earlier ones have taught."""
