"""Modules that all other parts use and that know nothing of models: files, devices, the hub, JSON, progress, errors."""
