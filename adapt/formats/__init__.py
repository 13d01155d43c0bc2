"""Formats: the adapter file, compact folders, published checkpoints, merged models, peft's layout, hub repositories."""
