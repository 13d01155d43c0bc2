"""`adapt label`: proposed labels for images, the most useful images first, and the answers of a person."""
