"""A recipe in a picture, as text and as a command: writers and readers."""
