"""A backbone under a method, as one module: one kind for each family of backbones."""
