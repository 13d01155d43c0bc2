"""The data sets bundled with adapt: emoji in several drawing styles, and scenes composed of emoji."""
