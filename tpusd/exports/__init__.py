"""A run's or a sweep's images in layouts that other programs read: one file a layout."""
