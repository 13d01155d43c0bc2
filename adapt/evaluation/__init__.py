"""Evaluation of an adapted model on labelled images."""
