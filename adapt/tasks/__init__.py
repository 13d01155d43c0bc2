"""What is asked of the adapted model: loss, metrics and prediction."""
