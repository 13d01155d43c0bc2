"""The evaluations of the papers: many runs, one table."""
