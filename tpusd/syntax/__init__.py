"""What a prompt's marks mean: words with weights, in chunks of a window. Knows no networks and no files."""
