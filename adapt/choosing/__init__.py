"""Choice of a method for a set of images: many are compared by cross-validation, and the chosen one is trained."""
