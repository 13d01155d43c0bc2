"""Measures an adapted model on labelled images."""
