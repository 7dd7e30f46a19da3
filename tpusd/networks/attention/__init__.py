"""Scaled dot-product attention, one file for each way to compute it."""
