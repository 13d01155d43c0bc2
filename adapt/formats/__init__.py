"""The adapter file, compact folders, published checkpoints, merged models, peft's layout, repositories of the hub."""
