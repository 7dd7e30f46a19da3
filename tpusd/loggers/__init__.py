"""A finished run reported to experiment trackers."""
