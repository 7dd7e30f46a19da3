"""log, sin and cos in float32, bit for bit as PyTorch computes them for normal numbers on an x86 CPU with AVX2.

They are those of the Cephes library (Moshier 1984-1992), eight values at once, and the compiler joins each product and
the sum after it into one operation with one rounding. `fused` is that operation.
"""

import numpy as np

F = np.float32
_LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
_LN2 = (-2.12194440e-4, 0.693359375)  # log(2) as a sum, whose second term has few bits
_QUARTER_PI = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)  # -pi/4 as a sum
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
# A float64 between two neighbours in float32 has these last bits.
_LAST_BITS, _HALFWAY = np.uint64((1 << 29) - 1), np.uint64(1 << 28)


def fused(a: np.ndarray, b: np.ndarray | np.float32, c: np.ndarray | np.float32) -> np.ndarray:
    """a * b + c of float32 values, rounded once.

    The product is exact in float64. The sum may be rounded there to a value halfway between two of float32, which hides
    on which side of it the sum lies; it is moved there.
    """
    product, c = a.astype(np.float64) * np.asarray(b, np.float64), np.asarray(c, np.float64)
    total = product + c
    halfway = (total.view(np.uint64) & _LAST_BITS) == _HALFWAY
    if halfway.any():
        rounded_off = total - product  # Knuth's exact error of a sum
        error = (product - (total - rounded_off)) + (c - rounded_off)
        nudged = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        total = np.where(halfway & (error != 0), nudged, total)
    rounded: np.ndarray = total.astype(F)
    return rounded


def log(x: np.ndarray) -> np.ndarray:
    """x: float32, above 0 and normal."""
    mantissa, exponent = np.frexp(x)
    exponent = exponent.astype(F)
    low = mantissa < F(0.707106781186547524)
    x = np.where(low, mantissa - F(1) + mantissa, mantissa - F(1))
    exponent = np.where(low, exponent - F(1), exponent)
    y = np.full_like(x, _LOG[0])
    for coefficient in _LOG[1:]:
        y = fused(y, x, F(coefficient))
    z = x * x
    y = fused(y * x, z, exponent * F(_LN2[0]))
    y = fused(z, F(-0.5), y)
    return fused(exponent, F(_LN2[1]), x + y)


def sin_cos(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x: float32, from 0 to 2 pi."""
    octant = (x * F(1.27323954473516)).astype(np.int32)  # 4 / pi
    octant = (octant + 1) & ~1
    turns = octant.astype(F)
    for part in _QUARTER_PI:
        x = fused(turns, F(part), x)
    z = x * x
    cos = fused(fused(np.full_like(z, _COS[0]), z, F(_COS[1])), z, F(_COS[2]))
    cos = fused(cos * z, z, z * F(-0.5)) + F(1)
    sin = fused(fused(np.full_like(z, _SIN[0]), z, F(_SIN[1])), z, F(_SIN[2]))
    sin = fused(sin * z, x, x)
    swapped = (octant & 2) != 0
    sin, cos = np.where(swapped, cos, sin), np.where(swapped, sin, cos)
    return np.where(octant & 4, -sin, sin), np.where((octant - 2) & 4, cos, -cos)
