"""The adapter file, compact folders, published checkpoints, merged models, and the layout of peft."""
