"""Features of a reference, kept in the user's cache: a folder of 50,000 photographs goes through the network once.

A file is named by the pictures' and the weights' sha256, so what is there is what would be computed. The newest
MAX_KEPT stay. A cache that cannot be read or written costs time and is no error.
"""

import contextlib
import hashlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpusd import storage
from tpusd.storage.cache import cache_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Features = NDArray[np.floating[Any]]

MAX_KEPT = 16
MAX_BYTES = 8 << 30  # of a file
VERSION = 1  # of what is done to a picture before its network
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_kept(metric: str, weights: str, pictures: str) -> "Features | None":
    """The features of the pictures with this digest, or None. metric: whose network computes them."""
    import numpy as np

    try:
        file = _file(metric, weights, pictures)
        if (storage.file_size(file) or MAX_BYTES + 1) > MAX_BYTES:
            return None
        with np.load(file, allow_pickle=False) as arrays:
            found = arrays["features"]
    except _UNREADABLE:
        return None
    whole = found.ndim == 2 and np.issubdtype(found.dtype, np.floating) and bool(np.isfinite(found).all())
    return found if whole else None


def keep(metric: str, weights: str, pictures: str, features: "Features") -> None:
    """For the next time."""
    import numpy as np

    data = io.BytesIO()
    np.savez(data, features=features)
    with contextlib.suppress(OSError, RuntimeError):
        file = _file(metric, weights, pictures)
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write_file(file, data.getvalue())
        others = sorted(file.parent.glob("*.npz"), key=lambda one: one.stat().st_mtime)
        for old in others[:-MAX_KEPT]:
            storage.remove_file(old)


def _file(metric: str, weights: str, pictures: str) -> Path:
    key = hashlib.sha256(f"{VERSION} {metric} {weights} {pictures}".encode()).hexdigest()
    return cache_folder("features") / f"{key}.npz"
