"""Pure tensor functions of the room: grids, rounding, Kronecker factors, shrinkage, packing."""
