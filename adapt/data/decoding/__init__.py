"""Decoding of image files to tensors, and the cache of their features."""
