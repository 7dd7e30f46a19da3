"""The images of a run, their size, and the batches that they are made in."""
