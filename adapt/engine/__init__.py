"""Frozen models run under edits (learned tokens, replaced modules, low-rank updates); no other code applies edits."""
