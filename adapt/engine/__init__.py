"""The only code that applies edits."""
