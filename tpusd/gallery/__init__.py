"""Pages, contact sheets, grids and thumbnails of runs and sweeps."""
