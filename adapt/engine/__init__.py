"""Runs a frozen model with edits (learned tokens, replaced modules, low-rank updates); no other code applies edits."""
