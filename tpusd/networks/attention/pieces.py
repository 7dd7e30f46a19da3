"""The size of the pieces of a dimension that is too long to be computed at once."""


def largest_divisor(length: int, at_most: int) -> int:
    """The largest divisor of length that is not above `at_most`, or 1: the size of equal pieces."""
    return next(size for size in range(max(1, min(length, at_most)), 0, -1) if length % size == 0)
