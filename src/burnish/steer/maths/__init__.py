"""Mathematics of steering: pure functions on tensors and token ids."""
