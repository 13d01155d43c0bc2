"""Frozen pre-trained models: loading them, mapping their towers, preprocessing images, quantisation."""
