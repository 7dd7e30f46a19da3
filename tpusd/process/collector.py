"""Python's collector of cycles runs less often in a command: imports and traces make millions of objects that stay."""

import contextlib
import gc
from collections.abc import Iterator

OBJECTS = 100_000  # new ones between two collections; Python's own number is 700, or 2,000


@contextlib.contextmanager
def fewer_collections() -> Iterator[None]:
    """In the block, a collection happens after `OBJECTS` new objects. A larger number of the caller's, or 0, stays."""
    before = gc.get_threshold()
    if 0 < before[0] < OBJECTS:
        gc.set_threshold(OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
