"""Where files are kept: every disk operation of a run."""
