"""Measurements, a command each. None of them is a test, and the package does not import them."""
