"""Scores of pictures: what a metric is, and what scores a run with it."""
