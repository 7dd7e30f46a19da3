"""The images of a run, and the batches that they are made in."""
