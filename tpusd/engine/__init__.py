"""A checkpoint as compiled programs over all devices: tokens and tables in, pixels out."""
