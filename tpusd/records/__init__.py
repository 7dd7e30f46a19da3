"""What a run is on disk: its directory, manifest, run.json, and how they are read back and repaired."""
