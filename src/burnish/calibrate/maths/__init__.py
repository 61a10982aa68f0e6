"""Pure tensor functions of the room: Kronecker factors, packed triangles."""
