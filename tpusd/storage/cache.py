"""Where tpusd keeps what it can compute again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of the user's cache: under XDG_CACHE_HOME or ~/.cache. Raises RuntimeError for a user without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tpusd" / name
