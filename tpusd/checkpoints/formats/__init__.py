"""Weight files as named arrays, one file for each format."""
