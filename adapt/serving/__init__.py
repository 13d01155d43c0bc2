"""Adapters behind HTTP: who is served, what is computed together, and the interface."""
