"""The pictures that images start from: found, checked, read, resized."""
