"""The papers' evaluation protocols, which make many runs of a recipe and one table of their results."""
