"""What makes batches of images: one file for each kind of place with devices."""
