"""Retrieval: an index of texts or images, exact search in it, and vocabulary-free classification."""
