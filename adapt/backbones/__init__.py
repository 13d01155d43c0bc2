"""What a frozen model is made of: maps of parts, loading, preprocessing."""
