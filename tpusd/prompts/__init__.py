"""Prompt sets: files and inline rows, read once into Rows."""
