"""Where files are kept. Every disk operation of a run is here."""
