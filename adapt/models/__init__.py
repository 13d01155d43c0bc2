"""Adapted models: a backbone with a method as one module, one kind for each family of backbones."""
