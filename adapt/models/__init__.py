"""Adapted models: a backbone and a method joined in one module, one class for each kind of backbone."""
