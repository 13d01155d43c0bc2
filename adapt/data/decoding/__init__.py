"""Decoding of image files to tensors, data loading, and the cache of image features."""
