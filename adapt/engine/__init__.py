"""The engine, which alone applies edits: it runs frozen models with learned tokens, replaced modules and the like."""
