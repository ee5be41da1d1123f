"""A container -> the files that it was made of."""
