"""Features of many texts or images in one file, exact search in them, and names that nobody listed."""
