"""Backbones (frozen pre-trained models): loading, a map of their towers, image preprocessing, quantisation."""
