"""One claim of the textbooks each, trained, measured and drawn."""
