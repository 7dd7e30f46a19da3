"""The metrics: one file each, or one for several that share their network. The registry finds them."""
