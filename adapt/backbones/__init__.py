"""The parts of a frozen model: towers, loading, preprocessing, quantisation."""
