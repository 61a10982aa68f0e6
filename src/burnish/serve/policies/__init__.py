"""Policies as plain objects: the same in the simulator and in vLLM's scheduler. `protocol` is all that they share."""
