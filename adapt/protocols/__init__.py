"""The papers' evaluation protocols: many runs, one table."""
