"""How much of a dimension goes through at once, where all of it is too much."""


def largest_divisor(length: int, at_most: int) -> int:
    """The largest divisor of length up to `at_most`, or 1: the size of equal pieces."""
    return next(size for size in range(max(1, min(length, at_most)), 0, -1) if length % size == 0)
