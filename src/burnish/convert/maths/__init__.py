"""Pure tensor functions of the room: pairs that turn, the shared latent, what attention weighs, ranks."""
