"""A run or a sweep in the form that other programs read, a file a format."""
