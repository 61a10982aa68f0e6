"""Checkpoints in another form: experts (upcycling), latent attention, Ladder-Residual, SwiftKV, or unpacked."""
