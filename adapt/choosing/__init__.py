"""Which method for these images, and how good it will be: many methods by cross-validation, one of them trained."""
