"""The bundled sets: emoji, and questions about scenes of them."""
