"""Scaled dot-product attention, one file for each back end."""
