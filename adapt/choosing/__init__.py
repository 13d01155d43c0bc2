"""Choose a method for a set of images: compare many by cross-validation, and train the best choice."""
